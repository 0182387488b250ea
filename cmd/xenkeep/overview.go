package main

import (
	"fmt"
	"time"

	"xenkeep/job"
)

// overview follows a run over several VMs. A VM counts by the size of its
// disks; one whose size is not known yet counts as much as the others do on
// average.
type overview struct {
	began time.Time
	vms   map[string]*runVM
	cut   float64 // bytes of disks whose transfer was cut short
}

// runVM is a VM of a run.
type runVM struct {
	size  int64
	done  float64 // bytes of its disks that are done
	ended bool
}

func (t *tracker) Expect(sizes map[string]int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.run = overview{began: t.now(), vms: make(map[string]*runVM)}
	for vm, n := range sizes {
		t.run.vms[vm] = &runVM{size: n}
	}
}

func (t *tracker) BeginVM(vm string, size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.run.vms[vm]; v != nil {
		v.size, v.done = size, 0 // an earlier attempt does not count
	}
}

func (t *tracker) EndVM(vm string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.run.vms[vm]; v != nil {
		v.ended = true
	}
}

// diskDone counts a disk whose transfer ended.
func (o *overview) diskDone(m *transfer) {
	if v := o.vms[m.vm]; v != nil {
		v.done += float64(m.size)
	}
}

// share returns how many VMs have ended and which share of the run is done.
func (o *overview) share(open []*transfer) (ended int, share float64) {
	var known, sum, done float64
	for _, v := range o.vms {
		if v.size > 0 {
			known++
			sum += float64(v.size)
		}
	}
	mean := 1.0
	if known > 0 {
		mean = sum / known
	}
	sum += mean * (float64(len(o.vms)) - known)
	for _, v := range o.vms {
		switch {
		case v.ended && v.size > 0:
			done += float64(v.size)
		case v.ended:
			done += mean
		default:
			done += min(v.done, float64(v.size))
		}
		if v.ended {
			ended++
		}
	}
	for _, m := range open {
		if v := o.vms[m.vm]; v != nil && !v.ended {
			done += m.credit()
		}
	}
	return ended, min((done+o.cut)/sum, 1)
}

// text returns, for example, "12 of 30 VMs, 41 %, 3 min left", or "" if the run has
// a single VM.
func (o *overview) text(now time.Time, open []*transfer) string {
	if len(o.vms) < 2 {
		return ""
	}
	ended, share := o.share(open)
	line := fmt.Sprintf("%d of %d VMs, %.0f %%", ended, len(o.vms), 100*share)
	var left time.Duration
	if share > 0 && share < 1 {
		left = time.Duration(float64(now.Sub(o.began)) * (1 - share) / share)
	}
	for _, m := range open {
		left = max(left, m.left(now)) // the run takes no less than its slowest disk
	}
	if left > 0 {
		line += ", " + about(left) + " left"
	}
	return line
}

// stopped is the line that an interrupted run leaves.
func (o *overview) stopped(open []*transfer) string {
	if len(o.vms) < 2 {
		return ""
	}
	ended, share := o.share(open)
	return fmt.Sprintf("%d of %d VMs, %.0f %%, stopped", ended, len(o.vms), 100*share)
}

// about is a length of time in one or two units.
func about(d time.Duration) string {
	switch minutes := int(d.Round(time.Minute).Minutes()); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(int(d.Seconds()), 1))
	case minutes < 60:
		return fmt.Sprintf("%d min", minutes)
	default:
		return fmt.Sprintf("%d h %d min", minutes/60, minutes%60)
	}
}

var _ job.Overview = (*tracker)(nil)
