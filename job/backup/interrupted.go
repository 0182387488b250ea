package backup

import (
	"slices"
	"sync/atomic"

	"xenkeep/job"
)

// transferred counts the bytes that were read of a VM.
type transferred struct{ read, total atomic.Int64 }

// countingMeter is a Meter that also counts for its VM.
type countingMeter struct {
	job.Meter
	of *transferred
}

func (c countingMeter) Add(n int64) {
	c.of.read.Add(n)
	c.Meter.Add(n)
}

// noteInterrupted records the VMs that were begun, and neither saved nor failed.
func (b *poolBackup) noteInterrupted() {
	for _, v := range b.begun {
		t := v.target
		saved := slices.ContainsFunc(b.sum.Snapshots, func(s job.VMSummary) bool { return s.VMUUID == t.uuid })
		failed := slices.ContainsFunc(b.sum.Failed, func(f job.VMFailure) bool { return f.UUID == t.uuid || f.VM == t.name })
		again := slices.ContainsFunc(b.sum.Interrupted, func(i job.VMInterrupt) bool { return i.UUID == t.uuid })
		if !saved && !failed && !again {
			b.sum.Interrupted = append(b.sum.Interrupted, job.VMInterrupt{
				VM: t.name, UUID: t.uuid, Read: v.moved.read.Load(), Total: v.moved.total.Load(), Clean: !v.leftOnPool,
			})
		}
	}
}
