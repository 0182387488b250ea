package sr

import (
	"fmt"
	"slices"
	"time"
)

// Volume holds the data of a VDI: the leaf of a chain of layers or, if hidden,
// a base copy inside one.
type Volume struct {
	sr   *SR
	uuid string

	// The following fields are guarded by sr.mu.

	// top is the layer with the volume's own name; nil after the volume or its
	// data are destroyed.
	top      *layer
	raw      bool
	hidden   bool
	attached bool
	// inflated volumes on LVM occupy their full size.
	inflated bool
	cbt      *cbtLog
}

// UUID returns the volume's name.
func (v *Volume) UUID() string { return v.uuid }

// Size returns the virtual size in bytes; 0 after the data are destroyed.
func (v *Volume) Size() int64 {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	if v.top == nil {
		return 0
	}
	return v.top.size
}

// Raw reports whether the volume is stored without a VHD.
func (v *Volume) Raw() bool { return v.raw }

// bare reports whether an export finds only a device for the volume, without a
// VHD.
func (v *Volume) bare() bool { return v.raw || v.sr.cfg.QCOW2 }

// Hidden reports whether the volume is a base copy.
func (v *Volume) Hidden() bool {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	return v.hidden
}

// Parent returns the base copy directly below the volume ("vhd-parent" in a
// VDI's sm_config), or nil.
func (v *Volume) Parent() *Volume {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	if v.top == nil || v.top.parent == nil {
		return nil
	}
	return v.sr.volumes[v.top.parent.name]
}

// Path returns the name of the volume's file on a real host.
func (v *Volume) Path() string {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	if v.top == nil {
		return ""
	}
	return v.sr.filePath(v.top)
}

// PhysicalUtilisation returns the space that the volume occupies on the SR: the
// length of its file or logical volume.
func (v *Volume) PhysicalUtilisation() int64 {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	return v.utilisation()
}

// utilisation uses the storage manager's formulas: VHD metadata and allocated
// blocks for files; for logical volumes, the space for the metadata of the
// largest VHD (so that the volume can grow), and for all data if the volume is
// inflated (sm, lvhdutil.py calcSizeVHDLV, vhdutil.py calcOverheadEmpty).
func (v *Volume) utilisation() int64 {
	l := v.top
	if l == nil {
		return 0
	}
	lvm := v.sr.LVM()
	switch {
	case v.raw && lvm:
		return l.size
	case v.raw:
		return l.allocated() * blockSize
	case !lvm:
		blocks := (l.size + blockSize - 1) / blockSize
		return vhdOverhead(blocks) + l.allocated()*(blockSize+512)
	case v.inflated:
		return lvmFull(l.size)
	}
	return roundUp(vhdOverhead(2<<40/blockSize)+l.allocated()*(blockSize+4096), lvmExtent)
}

// vhdOverhead returns the length of an empty VHD file with space for n blocks:
// footer, copy, header, a sector for the parent's name, and the BAT.
func vhdOverhead(n int64) int64 { return 512 + 1024 + 512 + roundUp(4*n, 512) + 512 }

// lvmFull returns the size of a logical volume for a fully allocated VHD.
func lvmFull(size int64) int64 {
	return roundUp(vhdOverhead(2<<40/blockSize)+roundUp(size, blockSize)/blockSize*(blockSize+4096), lvmExtent)
}

// SetAttached sets whether the volume is attached writable to a running VM. A
// thick volume occupies its full size while it is attached; attaching a
// deflated volume fails if there is not enough space. A changed-block log that
// was not closed by a detachment is deleted when the volume is attached again
// (sm, VDI.py, activate).
func (v *Volume) SetAttached(attached bool) error {
	s := v.sr
	s.mu.Lock()
	defer s.mu.Unlock()
	if attached && s.LVM() && !v.raw && !v.inflated && v.top != nil {
		if s.free() < lvmFull(v.top.size)-v.utilisation() {
			return errNoSpace()
		}
		v.inflated = true
	}
	if v.cbt != nil {
		if attached && !v.attached && v.cbt.open {
			v.loseLog()
		} else {
			v.cbt.open = attached
		}
	}
	v.attached = attached
	return nil
}

// Crash ends an attachment as when the host dies: nothing is closed.
func (v *Volume) Crash() {
	v.sr.mu.Lock()
	defer v.sr.mu.Unlock()
	v.attached = false
}

// Revert sets v to the content and size of snap, which must be on the same SR,
// and keeps v's name: this is the storage's own revert. v's changed-block log
// continues as if nothing had happened. If snap's file holds data, it becomes a
// base copy named baseUUID; otherwise base is nil.
func (v *Volume) Revert(snap *Volume, tmpUUID, baseUUID string) (base *Volume, err error) {
	if snap.sr != v.sr {
		return nil, &Error{FaultUnimplemented, "The operation is not implemented"}
	}
	fork, base, err := snap.fork(tmpUUID, baseUUID, false)
	if err != nil {
		return nil, err
	}
	s := v.sr
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.top == nil {
		return base, fmt.Errorf("revert %s: %w", v.uuid, ErrGone)
	}
	old := v.top
	v.top, fork.top = fork.top, nil
	v.top.name = v.uuid
	v.inflated = false
	delete(s.volumes, tmpUUID)
	if v.cbt != nil {
		v.cbt.bitmap, v.cbt.size = v.cbt.bitmap[:min(len(v.cbt.bitmap), bitmapLen(v.top.size))], v.top.size
		v.cbt.grow(v.top.size)
	}
	return base, old.discard()
}

// Snapshot creates a snapshot of v named snapUUID. As on a real SR, the file of
// v becomes a hidden, read-only base copy named baseUUID, and v and the
// snapshot get new empty files on top of it. If v's file holds no data yet and
// has a parent, no base copy is created, base is nil, and the snapshot becomes
// v's sibling on that parent.
func (v *Volume) Snapshot(snapUUID, baseUUID string) (snap, base *Volume, err error) {
	return v.fork(snapUUID, baseUUID, true)
}

// Clone is like Snapshot, for a writable copy; the copy has no CBT.
func (v *Volume) Clone(cloneUUID, baseUUID string) (clone, base *Volume, err error) {
	return v.fork(cloneUUID, baseUUID, false)
}

func (v *Volume) fork(newUUID, baseUUID string, snapshot bool) (fork, base *Volume, err error) {
	s := v.sr
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case v.top == nil:
		return nil, nil, fmt.Errorf("snapshot %s: %w", v.uuid, ErrGone)
	case v.raw:
		return nil, nil, &Error{FaultUnimplemented, "The operation is not implemented"}
	case v.top.depth() >= maxChain:
		return nil, nil, &Error{FaultChainTooLong, "The snapshot chain is too long"}
	case s.volumes[newUUID] != nil || s.volumes[baseUUID] != nil || newUUID == baseUUID:
		return nil, nil, fmt.Errorf("snapshot %s: name in use", v.uuid)
	}
	old, size := v.top, v.top.size
	fork = &Volume{sr: s, uuid: newUUID}
	if old.parent != nil && old.allocated() == 0 {
		fork.top = s.newLayer(newUUID, size, old.parent)
		if s.free() < fork.utilisation() {
			return nil, nil, errNoSpace()
		}
	} else {
		fork.top = s.newLayer(newUUID, size, old)
		base = &Volume{sr: s, uuid: baseUUID, hidden: true, top: old}
		leaf := &Volume{sr: s, top: s.newLayer(v.uuid, size, old), inflated: s.LVM() && v.attached}
		after := base.utilisation() + fork.utilisation() + leaf.utilisation()
		if s.free() < after-v.utilisation() {
			return nil, nil, errNoSpace()
		}
		old.name = baseUUID
		v.top, v.inflated = leaf.top, leaf.inflated
		s.volumes[baseUUID] = base
	}
	s.volumes[newUUID] = fork
	if snapshot {
		v.snapshotCBT(fork)
	}
	return fork, base, nil
}

// Resize grows the volume to at least size bytes, rounded as in Create.
func (v *Volume) Resize(size int64) error {
	s := v.sr
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.top == nil {
		return fmt.Errorf("resize %s: %w", v.uuid, ErrGone)
	}
	size, err := s.roundSize(size, v.raw)
	if err != nil {
		return err
	}
	if size < v.top.size {
		return &Error{FaultVDISize, "VDI Invalid size [opterr=shrinking not allowed]"}
	}
	if s.LVM() && (v.raw || v.inflated) {
		grown := Volume{sr: s, raw: v.raw, inflated: v.inflated, top: &layer{size: size}}
		if s.free() < grown.utilisation()-v.utilisation() {
			return errNoSpace()
		}
	}
	v.top.size = size
	if v.cbt != nil {
		v.cbt.grow(size)
	}
	return nil
}

// Destroy removes the volume. Base copies below it stay until GC. The changes
// in a CBT log are added to the log that follows it.
func (v *Volume) Destroy() error {
	s := v.sr
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes[v.uuid] != v {
		return fmt.Errorf("destroy %s: %w", v.uuid, ErrGone)
	}
	for _, o := range s.volumes {
		if v.top != nil && o.top != nil && o.top.parent == v.top {
			return fmt.Errorf("destroy %s: it has children", v.uuid)
		}
	}
	if v.cbt != nil {
		s.dropLog(v.cbt)
		v.cbt = nil
	}
	delete(s.volumes, v.uuid)
	return v.drop()
}

// drop releases v's own layer.
func (v *Volume) drop() error {
	l := v.top
	v.top = nil
	if l == nil {
		return nil
	}
	return l.discard()
}

// GC does the work of a real SR's garbage collector, which runs some time after
// a deletion: it removes base copies without children, and merges a base copy
// that has a single child (base copy or leaf) with that child, until nothing is
// left to do. It returns the UUIDs of the removed base copies. It skips layers
// that an export is reading; a later call collects them.
func (s *SR) GC() (gone []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		removed, err := s.collect()
		if err != nil || removed == "" {
			slices.Sort(gone)
			return gone, err
		}
		gone = append(gone, removed)
	}
}

// collect performs one step and returns the name of the base copy that it
// removed.
func (s *SR) collect() (string, error) {
	for _, v := range s.volumes {
		if !v.hidden || v.top.inUse() {
			continue
		}
		kids := s.children(v.top)
		switch len(kids) {
		case 0:
			delete(s.volumes, v.uuid)
			return v.uuid, v.drop()
		case 1:
			kid := kids[0]
			if kid.top.inUse() {
				continue
			}
			removed, err := s.merge(v, kid)
			if err != nil || removed != "" {
				return removed, err
			}
		}
	}
	return "", nil
}

// merge moves kid's data into its parent. If kid is a base copy, it disappears
// and its children become children of the parent; if it is a leaf, it takes
// over the parent's file, which keeps the UUID in its footer and gets the
// leaf's name (sm, cleanup.py, coalesce and leaf-coalesce).
func (s *SR) merge(parent, kid *Volume) (string, error) {
	target, from := parent.top, kid.top
	grandkids := s.children(from)
	if err := target.absorb(from); err != nil {
		return "", err
	}
	target.mtime = time.Now()
	if kid.hidden {
		for _, g := range grandkids {
			g.top.parent = target
		}
		delete(s.volumes, kid.uuid)
		return kid.uuid, kid.drop()
	}
	err := from.discard()
	target.name = kid.uuid
	kid.top, parent.top = target, nil
	delete(s.volumes, parent.uuid)
	return parent.uuid, err
}

// ReadAt implements io.ReaderAt. Unwritten areas read as zeros, or as garbage
// on raw logical volumes.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	if v.top == nil {
		return 0, fmt.Errorf("read %s: %w", v.uuid, ErrGone)
	}
	return v.top.readAt(p, off)
}

// WriteAt writes like the guest. Real guests write whole sectors, but any range
// is accepted. A write past the end fails after the part that fits was written.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	return v.writeAt(p, off)
}

func (v *Volume) writeAt(p []byte, off int64) (int, error) {
	if v.top == nil {
		return 0, fmt.Errorf("write %s: %w", v.uuid, ErrGone)
	}
	if v.hidden {
		return 0, fmt.Errorf("write %s: read-only", v.uuid)
	}
	n, err := v.top.writeAt(p, off)
	if v.cbt != nil && n > 0 {
		v.cbt.mark(off, int64(n))
	}
	return n, err
}
