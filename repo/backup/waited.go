package backup

import (
	"time"
)

// Waited tells what the backup of a disk waited for. The three make its wall
// time.
type Waited struct {
	Source  time.Duration // the disk's data
	CPU     time.Duration // cutting, naming, compressing and sealing
	Storage time.Duration // room in packs, while all that may be are on their way
}

// spent is the time that the parts of a pipeline took.
type spent struct {
	source  time.Duration // waiting for the source
	busy    time.Duration // of all workers together, with blocks
	storage time.Duration // of that, waiting for the storage
}

// inOrder is for pipelines whose one reader runs ahead of the workers: what it
// does not wait for the source it waits for them, and they either work or wait
// for the storage.
func (d *diskRun) inOrder(wall time.Duration) Waited {
	w := Waited{Source: min(d.spent.source, wall)}
	return w.rest(wall-w.Source, d.spent.storage, d.spent.busy-d.spent.storage)
}

// ahead is for pipelines whose readers run ahead of the workers: source is how
// long these, all together, have waited for what is read.
func (d *diskRun) ahead(wall time.Duration) Waited {
	var w Waited
	if all := d.spent.source + d.spent.busy; all > 0 {
		w.Source = time.Duration(float64(wall) * d.spent.source.Seconds() / all.Seconds())
	}
	return w.rest(wall-w.Source, d.spent.storage, d.spent.busy-d.spent.storage)
}

// rest divides what is left between storage and CPU.
func (w Waited) rest(left, storage, cpu time.Duration) Waited {
	cpu = max(cpu, 0)
	if all := storage + cpu; all > 0 {
		w.Storage = time.Duration(float64(left) * storage.Seconds() / all.Seconds())
	}
	w.CPU = left - w.Storage
	return w
}
