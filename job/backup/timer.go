package backup

import (
	"sync"
	"time"

	"xenkeep/job"
	"xenkeep/repo/backup"
)

// summary is what the run's report tells of a VM.
func (v *vmBackup) summary() job.VMSummary {
	s := job.Summarize(v.snap)
	for i := range s.Disks {
		s.Disks[i].Transport = v.transports[i]
	}
	s.Started, s.Duration = v.timer.started.UTC(), v.timer.wall().Seconds()
	s.Waits = v.timer.shares()
	s.Slowest = s.Waits.Bottleneck()
	return s
}

// timer tells what a VM's backup waited for. While disks of it are being
// read, time goes by what their pipelines waited for, all taken together; all
// other time is the pool's; publishing is the storage's.
type timer struct {
	mu        sync.Mutex
	started   time.Time
	ended     time.Time
	open      int // disks under way
	since     time.Time
	reading   time.Duration // at least one disk was under way
	waited    backup.Waited
	published time.Duration
}

func (s *timer) begin(now time.Time) { s.started = now }

func (s *timer) end(now time.Time) { s.ended = now }

// disk notes that a disk begins; the function returned, that it has ended.
func (s *timer) disk(now time.Time) func(time.Time, backup.Waited) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == 0 {
		s.since = now
	}
	s.open++
	return func(now time.Time, w backup.Waited) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waited.Source += w.Source
		s.waited.CPU += w.CPU
		s.waited.Storage += w.Storage
		if s.open--; s.open == 0 {
			s.reading += now.Sub(s.since)
		}
	}
}

// wall is how long the VM's backup took, publishing included.
func (s *timer) wall() time.Duration { return s.ended.Sub(s.started) + s.published }

func (s *timer) shares() job.Timing {
	total := s.wall().Seconds()
	if total <= 0 {
		return job.Timing{}
	}
	var w job.Timing
	reading, published := min(s.reading.Seconds()/total, 1), s.published.Seconds()/total
	if all := (s.waited.Source + s.waited.CPU + s.waited.Storage).Seconds(); all > 0 {
		w.Network = reading * s.waited.Source.Seconds() / all
		w.CPU = reading * s.waited.CPU.Seconds() / all
		w.Storage = reading * s.waited.Storage.Seconds() / all
	}
	w.Storage += published
	w.Pool = max(0, 1-w.Network-w.CPU-w.Storage)
	return w
}
