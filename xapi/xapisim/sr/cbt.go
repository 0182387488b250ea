package sr

import (
	"fmt"
	"sync"
)

// granule is the unit of changed-block tracking (blktap, include/cbt-util.h).
const granule = 64 << 10

// cbtLog is the changed-block log of one volume: the granules that were written
// between the preceding VDI snapshot and the volume's own snapshot, or until
// now.
type cbtLog struct {
	uuid          string
	parent, child string
	size          int64
	// bitmap has the first granule in the most significant bit of byte 0, the
	// order that list_changed_blocks returns.
	bitmap []byte
	// open is set while the volume is attached writable: a log that is still
	// open at the next attachment was not closed, and cannot be trusted.
	open bool

	mu sync.Mutex // for marks by writers that share the SR's lock
}

func newLog(uuid string, size int64) *cbtLog {
	l := &cbtLog{uuid: uuid}
	l.grow(size)
	return l
}

// bitmapLen returns the length of the bitmap of a disk of size bytes.
func bitmapLen(size int64) int { return int(((size+granule-1)/granule + 7) / 8) }

func (l *cbtLog) grow(size int64) {
	l.size = size
	if n := bitmapLen(size); n > len(l.bitmap) {
		l.bitmap = append(l.bitmap, make([]byte, n-len(l.bitmap))...)
	}
}

func (l *cbtLog) mark(off, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for g := off / granule; g <= (off+n-1)/granule && g/8 < int64(len(l.bitmap)); g++ {
		l.bitmap[g/8] |= 0x80 >> (g % 8)
	}
}

// CBTEnabled reports whether the volume has a log.
func (v *Volume) CBTEnabled() bool {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	return v.cbt != nil
}

// EnableCBT starts an empty log without a parent; it has no effect if there is
// a log already.
func (v *Volume) EnableCBT() error {
	s := v.sr
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case v.cbt != nil:
		return nil
	case v.top == nil:
		return fmt.Errorf("enable cbt of %s: %w", v.uuid, ErrGone)
	case v.raw:
		return &Error{FaultCBTRaw, "VDI type does not support operation"}
	}
	v.cbt = newLog(v.uuid, v.top.size)
	v.cbt.open = v.attached
	s.logs[v.uuid] = v.cbt
	return nil
}

// DisableCBT deletes the volume's own log. Its snapshots keep theirs.
func (v *Volume) DisableCBT() {
	v.sr.mu.Lock()
	defer v.sr.mu.Unlock()
	v.loseLog()
}

func (v *Volume) loseLog() {
	s := v.sr
	if v.cbt == nil {
		return
	}
	if p := s.logs[v.cbt.parent]; p != nil {
		p.child = ""
	}
	delete(s.logs, v.uuid)
	v.cbt = nil
}

// DataDestroy removes the volume's data and keeps its log.
func (v *Volume) DataDestroy() error {
	s := v.sr
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes[v.uuid] != v {
		return fmt.Errorf("destroy data of %s: %w", v.uuid, ErrGone)
	}
	return v.drop()
}

// snapshotCBT moves v's log to its snapshot, and starts a new one for v that
// follows it (sm, VDI.py, _cbt_snapshot). If there is no space for a new log, v
// has none afterwards.
func (v *Volume) snapshotCBT(snap *Volume) {
	old := v.cbt
	if old == nil {
		return
	}
	s := v.sr
	open := old.open
	old.uuid, old.open = snap.uuid, false
	if p := s.logs[old.parent]; p != nil {
		p.child = snap.uuid
	}
	snap.cbt, s.logs[snap.uuid] = old, old
	delete(s.logs, v.uuid)
	v.cbt, old.child = nil, ""
	if s.free() < s.logSize(v.top.size) {
		return
	}
	v.cbt = newLog(v.uuid, v.top.size)
	v.cbt.open = open
	s.logs[v.uuid] = v.cbt
	v.cbt.parent, old.child = snap.uuid, v.uuid
}

// logSize returns the space that a log needs: a logical volume, or a file with
// a header (sm, cbtutil.py and LVHDSR.py).
func (s *SR) logSize(size int64) int64 {
	if s.LVM() {
		return lvmExtent
	}
	return 4096 + int64(bitmapLen(size))
}

// DamageLog replaces the volume's log by that of a disk of size bytes, so that
// it is not compatible with other logs.
func (v *Volume) DamageLog(size int64) {
	v.sr.mu.Lock()
	defer v.sr.mu.Unlock()
	if v.cbt != nil {
		v.cbt.bitmap, v.cbt.size = nil, 0
		v.cbt.grow(size)
	}
}

// dropLog removes a log from its chain. Its changes are added to its child's
// log, so that a list across the removed log stays correct.
func (s *SR) dropLog(l *cbtLog) {
	child := s.logs[l.child]
	parent := s.logs[l.parent]
	if child != nil {
		child.grow(max(child.size, l.size))
		for i, b := range l.bitmap {
			child.bitmap[i] |= b
		}
		child.parent = l.parent
	}
	if parent != nil {
		parent.child = l.child
	}
	delete(s.logs, l.uuid)
}

// ChangedBlocks returns the 64 KiB granules that were written between from and
// to, one bit each, first granule in the most significant bit, for the size of
// to. from must be the older one of the same chain of logs.
func (s *SR) ChangedBlocks(from, to *Volume) ([]byte, error) {
	s.mu.Lock() // excludes marks by concurrent writers
	defer s.mu.Unlock()
	if from == to {
		return nil, &Error{FaultCBTUnrelated, "Failed to calculate changed blocks for given VDIs. [opterr=Source and target VDI are same]"}
	}
	unrelated := &Error{FaultCBTUnrelated, "Failed to calculate changed blocks for given VDIs. [opterr=Source and target VDI are unrelated]"}
	if from.cbt == nil || to.cbt == nil {
		return nil, unrelated
	}
	var merged []byte
	for l := from.cbt; l != to.cbt; {
		next := s.logs[l.child]
		if next == nil {
			return nil, unrelated
		}
		l = next
		if len(l.bitmap) < len(merged) {
			return nil, &Error{FaultCBTDiffer, "Size of bitmap is not consistent"}
		}
		sum := make([]byte, len(l.bitmap))
		copy(sum, merged)
		for i, b := range l.bitmap {
			sum[i] |= b
		}
		merged = sum
	}
	return merged, nil
}
