package browse

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"

	"xenkeep/chunkstore/chunk"
	"xenkeep/inspect"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/repo"
	"xenkeep/repo/diff"
	"xenkeep/repo/view"
)

// Changes is the difference between two snapshots. Its JSON form is documented in
// docs/reference/json.md.
type Changes struct {
	Type  string        `json:"type"` // "diff"
	A     string        `json:"a"`    // id of the older snapshot
	B     string        `json:"b"`    // id of the newer one
	Disks []DiskChanges `json:"disks"`
}

// DiskChanges is the difference of one disk.
type DiskChanges struct {
	Device  string          `json:"device"`
	SizeA   int64           `json:"size_a"` // 0: not in the older snapshot
	SizeB   int64           `json:"size_b"` // 0: not in the newer one
	Changed int64           `json:"bytes_changed"`
	Zeroed  int64           `json:"bytes_zeroed"` // of the changed bytes, those that are zero in the newer snapshot
	Ranges  int64           `json:"ranges"`
	Volumes []VolumeChanges `json:"volumes"`
	New     int64           `json:"bytes_new"`    // that were not in the repository when the newer snapshot was made
	Stored  int64           `json:"bytes_stored"` // that these occupy in the repository
}

// VolumeChanges is the difference in one partition or logical volume.
type VolumeChanges struct {
	Volume  string `json:"volume"` // "xvda1", "vg/root"; "" outside of all volumes
	FS      string `json:"fs,omitempty"`
	Label   string `json:"label,omitempty"`
	Size    int64  `json:"size"`
	Changed int64  `json:"bytes_changed"`
	Zeroed  int64  `json:"bytes_zeroed"`
	// The changed bytes that are not zero: in use, or free, according to the newer
	// file system; if it could not be read both are 0 and Unknown has all bytes.
	Used    int64 `json:"bytes_used"`
	Free    int64 `json:"bytes_free"`
	Unknown int64 `json:"bytes_unknown"`
	// Why is the reason why the file system could not be read.
	Why string `json:"why,omitempty"`
}

// ChangedRange is one range that differs, completely within one volume and in one
// state.
type ChangedRange struct {
	Type   string `json:"type"` // "range"
	Device string `json:"device"`
	Offset int64  `json:"offset"` // on the disk, in bytes
	Length int64  `json:"length"`
	Volume string `json:"volume,omitempty"`
	State  string `json:"state"` // "used", "free", "unknown" or "zero"
}

// Diff compares two snapshots by their trees, and attributes the changes to partitions
// and file systems. It calls each, unless nil, with every range.
func Diff(ctx context.Context, r *repo.Repository, a, b *repo.Snapshot, name string, each func(ChangedRange) error) (*Changes, error) {
	v := view.New(r, view.Options{})
	defer v.Close()
	var disks []inspect.Disk // of the newer snapshot
	var all []*repo.Disk
	for i := range b.Disks {
		d := &b.Disks[i]
		rd, err := v.Open(ctx, chunk.ID(d.Root))
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		disks, all = append(disks, inspect.Disk{Name: d.Device, Reader: rd}), append(all, d)
	}
	if name != "" {
		if _, err := b.Disk(name); err != nil {
			return nil, err
		}
	}
	rep, err := inspect.Disks(ctx, disks)
	if err != nil {
		return nil, err
	}
	out := &Changes{Type: "diff", A: a.ID(), B: b.ID(), Disks: []DiskChanges{}}
	maps := make(map[*inspect.Volume]*volumeMap)
	seen := make(map[*repo.Disk]bool)
	for i, d := range all {
		if name != "" {
			if only, _ := b.Disk(name); only != d {
				continue
			}
		}
		c := DiskChanges{Device: d.Device, SizeB: d.Size, Volumes: []VolumeChanges{}, New: d.Counts.New, Stored: d.Counts.Stored}
		old, err := records.SameDisk(a, d)
		if err != nil {
			out.Disks = append(out.Disks, c)
			continue
		}
		seen[old] = true
		c.SizeA = old.Size
		x := &diskDiff{ctx: ctx, c: &c, places: regionsOf(rep, i), maps: maps, each: each, by: make(map[*inspect.Volume]*VolumeChanges)}
		if err := diff.Ranges(ctx, r, chunk.ID(old.Root), chunk.ID(d.Root), x.add); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		for _, vc := range x.by {
			c.Volumes = append(c.Volumes, *vc)
		}
		slices.SortFunc(c.Volumes, func(a, b VolumeChanges) int {
			return cmp.Or(cmp.Compare(b.Changed, a.Changed), cmp.Compare(a.Volume, b.Volume))
		})
		out.Disks = append(out.Disks, c)
	}
	for i := range a.Disks {
		if d := &a.Disks[i]; !seen[d] && name == "" {
			out.Disks = append(out.Disks, DiskChanges{Device: d.Device, SizeA: d.Size, Volumes: []VolumeChanges{}})
		}
	}
	return out, nil
}

// region is an extent of a disk and its volume, or nil.
type region struct {
	disk.Extent
	v  *inspect.Volume
	at int64 // its offset in the volume
}

// regionsOf returns the regions of a disk, in order and without overlaps: a logical
// volume takes precedence over the partition that contains it.
func regionsOf(rep *inspect.Report, index int) []region {
	var out []region
	add := func(v *inspect.Volume) {
		at := int64(0)
		for _, r := range v.Runs {
			if r.Disk == index {
				e := region{disk.Extent{Offset: r.Offset, Length: r.Length}, v, at}
				at += r.Length
				if v.Kind == "logical volume" { // they do not overlap
					out = append(out, e)
					continue
				}
				taken := out
				sort.Slice(taken, func(i, j int) bool { return taken[i].Offset < taken[j].Offset })
				for _, t := range taken { // the parts that are not taken yet
					if t.End() <= e.Offset || t.Offset >= e.End() {
						continue
					}
					if t.Offset > e.Offset {
						out = append(out, region{disk.Extent{Offset: e.Offset, Length: t.Offset - e.Offset}, v, e.at})
					}
					skip := t.End() - e.Offset
					e.Offset, e.Length, e.at = e.Offset+skip, e.Length-skip, e.at+skip
					if e.Length <= 0 {
						break
					}
				}
				if e.Length > 0 {
					out = append(out, e)
				}
				continue
			}
			at += r.Length
		}
	}
	for _, kind := range []string{"logical volume", "partition", "disk"} {
		for _, v := range rep.Volumes {
			if v.Kind == kind {
				add(v)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Offset < out[j].Offset })
	return out
}

// volumeMap holds the free space of a file system.
type volumeMap struct {
	free  []disk.Extent
	known bool
	why   string
}

// diskDiff attributes the ranges of one disk to its regions.
type diskDiff struct {
	ctx    context.Context
	c      *DiskChanges
	places []region
	next   int // index of the current region
	maps   map[*inspect.Volume]*volumeMap
	by     map[*inspect.Volume]*VolumeChanges
	each   func(ChangedRange) error
}

func (x *diskDiff) add(r diff.Range) error {
	x.c.Ranges++
	for r.Length > 0 {
		for x.next < len(x.places) && x.places[x.next].End() <= r.Offset {
			x.next++
		}
		part, v, at := r.Extent, (*inspect.Volume)(nil), int64(0)
		if x.next < len(x.places) {
			p := x.places[x.next]
			if r.Offset < p.Offset {
				part.Length = min(part.Length, p.Offset-r.Offset)
			} else {
				part.Length = min(part.Length, p.End()-r.Offset)
				v, at = p.v, p.at+r.Offset-p.Offset
			}
		}
		if err := x.addPart(part, v, at, r.Zero); err != nil {
			return err
		}
		r.Offset, r.Length = r.Offset+part.Length, r.Length-part.Length
	}
	return nil
}

// addPart adds a range within one volume; at is its offset in the volume.
func (x *diskDiff) addPart(e disk.Extent, v *inspect.Volume, at int64, zero bool) error {
	vc := x.by[v]
	if vc == nil {
		vc = &VolumeChanges{}
		if v != nil {
			vc.Volume, vc.FS, vc.Label, vc.Size = v.Name, v.FS, v.Label, v.Size()
		}
		x.by[v] = vc
	}
	x.c.Changed, vc.Changed = x.c.Changed+e.Length, vc.Changed+e.Length
	tell := func(off, n int64, state string) error {
		if x.each == nil {
			return nil
		}
		return x.each(ChangedRange{Type: "range", Device: x.c.Device, Offset: off, Length: n, Volume: vc.Volume, State: state})
	}
	if zero {
		x.c.Zeroed, vc.Zeroed = x.c.Zeroed+e.Length, vc.Zeroed+e.Length
		return tell(e.Offset, e.Length, "zero")
	}
	m, err := x.mapOf(v)
	if err != nil {
		return err
	}
	if !m.known {
		vc.Unknown += e.Length
		vc.Why = m.why
		return tell(e.Offset, e.Length, "unknown")
	}
	i := sort.Search(len(m.free), func(i int) bool { return m.free[i].End() > at })
	for pos, end := at, at+e.Length; pos < end; {
		stop, state, sum := end, "used", &vc.Used
		if i < len(m.free) {
			if f := m.free[i]; pos >= f.Offset {
				stop, state, sum = min(end, f.End()), "free", &vc.Free
				i++
			} else {
				stop = min(end, f.Offset)
			}
		}
		*sum += stop - pos
		if err := tell(e.Offset+pos-at, stop-pos, state); err != nil {
			return err
		}
		pos = stop
	}
	return nil
}

func (x *diskDiff) mapOf(v *inspect.Volume) (*volumeMap, error) {
	if m := x.maps[v]; m != nil {
		return m, nil
	}
	m := &volumeMap{why: "outside of all partitions"}
	if v != nil {
		free, known, err := v.Free(x.ctx)
		switch {
		case x.ctx.Err() != nil:
			return nil, context.Cause(x.ctx)
		case err != nil:
			m.why = job.OneLine(err)
		case known:
			m.free, m.known = free, true
		case v.FS == "":
			m.why = "no file system that is known here"
		default:
			m.why = fmt.Sprintf("the maps of %s are not read here", v.FS)
		}
	}
	x.maps[v] = m
	return m, nil
}
