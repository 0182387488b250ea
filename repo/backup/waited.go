package backup

import (
	"time"
)

// Timing splits the wall time of a disk's backup into three parts by what the
// backup was waiting for.
type Timing struct {
	Source  time.Duration // the disk's data
	CPU     time.Duration // chunking, hashing, compressing and encrypting
	Storage time.Duration // space in packs, while the maximum number of uploads is in progress
}

// spent is the time that the stages of a pipeline took.
type spent struct {
	source  time.Duration // waiting for the source
	busy    time.Duration // all workers together, processing blocks
	storage time.Duration // of that, waiting for the storage
}

// inOrder is for pipelines with one reader: while the reader does not wait for the
// source, it waits for the workers, and those either compute or wait for the
// storage.
func (d *diskRun) inOrder(wall time.Duration) Timing {
	w := Timing{Source: min(d.spent.source, wall)}
	return w.rest(wall-w.Source, d.spent.storage, d.spent.busy-d.spent.storage)
}

// ahead is for pipelines whose readers run ahead of the workers: source is the
// total time that all workers have waited for blocks that were read.
func (d *diskRun) ahead(wall time.Duration) Timing {
	var w Timing
	if all := d.spent.source + d.spent.busy; all > 0 {
		w.Source = time.Duration(float64(wall) * d.spent.source.Seconds() / all.Seconds())
	}
	return w.rest(wall-w.Source, d.spent.storage, d.spent.busy-d.spent.storage)
}

// rest divides the remaining time between storage and CPU.
func (w Timing) rest(left, storage, cpu time.Duration) Timing {
	cpu = max(cpu, 0)
	if all := storage + cpu; all > 0 {
		w.Storage = time.Duration(float64(left) * storage.Seconds() / all.Seconds())
	}
	w.CPU = left - w.Storage
	return w
}
