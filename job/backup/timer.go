package backup

import (
	"sync"
	"time"

	"xenkeep/job"
	"xenkeep/repo/backup"
)

// summary returns the VM's part of the run's report.
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

// timer measures for what a VM's backup waited. While disks are being read, the time
// is divided in proportion to the waiting times of their pipelines. All other time is
// attributed to the pool, except for publishing, which is attributed to the storage.
// It is safe for concurrent use.
type timer struct {
	mu        sync.Mutex
	started   time.Time
	ended     time.Time
	open      int // disks that are being read
	since     time.Time
	reading   time.Duration // the time during which at least one disk was read
	waited    backup.Timing
	published time.Duration
}

func (s *timer) begin(now time.Time) { s.started = now }

func (s *timer) end(now time.Time) { s.ended = now }

// disk records that reading a disk begins; the returned function records its end.
func (s *timer) disk(now time.Time) func(time.Time, backup.Timing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == 0 {
		s.since = now
	}
	s.open++
	return func(now time.Time, w backup.Timing) {
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

// wall returns the duration of the VM's backup, including publishing.
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
