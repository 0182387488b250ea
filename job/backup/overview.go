package backup

import (
	"xenkeep/job"
	"xenkeep/job/vmplan"
)

// expect reports the VMs of the run and their sizes to Progress, if it is an Overview.
func (b *poolBackup) expect(targets []target) {
	o, ok := b.o.Progress.(job.Overview)
	if !ok {
		return
	}
	sizes := make(map[string]int64, len(targets))
	for _, t := range targets {
		sizes[t.uuid] = t.size
	}
	o.Expect(sizes)
}

// ended reports that no more data of a VM is read.
func (b *poolBackup) ended(t *target) {
	if o, ok := b.o.Progress.(job.Overview); ok {
		o.EndVM(t.uuid)
	}
}

// planned reports the size of the disks that are about to be read.
func (v *vmBackup) planned() {
	o, ok := v.b.o.Progress.(job.Overview)
	if !ok {
		return
	}
	var size int64
	for _, d := range v.plan.Disks {
		size += int64(d.VDI.VirtualSize)
	}
	o.BeginVM(v.target.uuid, size)
}

// meter begins to report the transfer of total bytes of a disk.
func (v *vmBackup) meter(d *vmplan.DiskPlan, total int64) job.Meter {
	label := v.plan.VM.NameLabel + " " + d.Device()
	v.moved.total.Add(total)
	if o, ok := v.b.o.Progress.(job.Overview); ok {
		return countingMeter{o.BeginDisk(v.target.uuid, label, int64(d.VDI.VirtualSize), total), &v.moved}
	}
	return countingMeter{v.b.o.Progress.Begin(label, total), &v.moved}
}
