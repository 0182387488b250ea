package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Intake collects index objects and adds them all in one durable step at the
// end, so that each entry is written and sorted only once, however many objects
// there are. About 16 MiB of the entries are in memory, the rest in a file in
// the index's folder. An Intake is not safe for concurrent use, and must be
// closed.
type Intake struct {
	x    *Index
	take *intake
}

// Intake starts an intake.
func (x *Index) Intake() *Intake {
	return &Intake{x: x, take: newIntake(x.folder)}
}

// Portion returns how many bytes of index objects, by their size in storage,
// one intake should collect. A run that ends early must read everything again
// that it has collected in an unfinished intake, and an index in memory holds
// the entries of an intake twice.
func (x *Index) Portion() int64 {
	if x.folder.memory() {
		return 16 << 20
	}
	return 2 << 30
}

// Add adds an index object to the collection.
func (in *Intake) Add(s Source) error { return in.take.add(&s) }

// Len returns the number of index objects that were added.
func (in *Intake) Len() int { return len(in.take.sources) }

// Close frees the memory and the file of the intake.
func (in *Intake) Close() { in.take.close() }

// finishTries is how often an intake is built without the lock. Each try fails
// if others change the index meanwhile; after the last one the intake is built
// with the lock held.
const finishTries = 2

// Finish adds the collected index objects to the index, as Update does.
func (in *Intake) Finish() error {
	x := in.x
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return errClosed
	}
	if err := in.finish(); err != nil {
		return fmt.Errorf("update index: %w", err)
	}
	return x.merge()
}

func (in *Intake) finish() error {
	x := in.x
	publish := func(s *segment) error {
		if s == nil {
			return nil
		}
		err := x.publish(append(x.view.Load().copyParts(), &part{segment: s}))
		if err != nil {
			x.folder.remove(s)
		}
		return err
	}
	for range finishTries {
		if err := x.change(func() error { return nil }); err != nil {
			return err
		}
		v := x.view.Load()
		s, err := in.take.build(v, v.has)
		if err != nil {
			return err
		}
		same := false
		err = x.change(func() error {
			if same = x.view.Load().stamp == v.stamp; same {
				return publish(s)
			}
			return nil
		})
		if !same && s != nil {
			x.folder.remove(s)
		}
		if same || err != nil {
			return err
		}
	}
	return x.change(func() error {
		v := x.view.Load()
		s, err := in.take.build(v, v.has)
		if err != nil {
			return err
		}
		return publish(s)
	})
}

// intake builds one segment from index objects.
type intake struct {
	rows    *spool // in the form of segment entries, with packs numbered in order of arrival
	numbers map[[32]byte]uint32
	ids     [][32]byte
	sizes   []int64
	sources []intakeSource
}

type intakeSource struct {
	name  string
	packs []uint32
}

func newIntake(f folder) *intake {
	return &intake{rows: newSpool(f, entrySize), numbers: make(map[[32]byte]uint32)}
}

func (t *intake) close() { t.rows.close() }

func (t *intake) add(s *Source) error {
	src := intakeSource{name: s.Name}
	for i := range s.Packs {
		p := &s.Packs[i]
		n, ok := t.numbers[p.Pack]
		if !ok {
			n = uint32(len(t.ids))
			t.numbers[p.Pack] = n
			t.ids, t.sizes = append(t.ids, p.Pack), append(t.sizes, 0)
		}
		t.sizes[n] = max(t.sizes[n], p.Size)
		src.packs = append(src.packs, n)
		for k := range p.Entries {
			e := &p.Entries[k]
			if err := t.rows.room(e.Prefix[0]); err != nil {
				return err
			}
			var r [entrySize]byte
			copy(r[:], e.Prefix[:])
			binary.LittleEndian.PutUint32(r[16:], n)
			binary.LittleEndian.PutUint32(r[20:], e.Offset)
			binary.LittleEndian.PutUint32(r[24:], e.Length)
			t.rows.add(r[:])
		}
	}
	t.sources = append(t.sources, src)
	return nil
}

// has reports whether the view contains an index object.
func (v *view) has(source string) bool {
	_, in := v.sources[source]
	return in
}

// packIn is a pack with its number in a segment.
type packIn struct {
	*segment
	pack uint32
}

// elsewhere returns the segments that have entries of a pack.
func (v *view) elsewhere(id *[32]byte) (in []packIn) {
	for _, s := range v.segments {
		if n, ok := s.packNumber(id); ok {
			if _, entries := s.packInfo(int(n)); entries > 0 {
				in = append(in, packIn{s.segment, n})
			}
		}
	}
	return in
}

func holds(in []packIn, hi, lo uint64, offset, length uint32) bool {
	return slices.ContainsFunc(in, func(p packIn) bool { return p.segment.holds(hi, lo, p.pack, offset, length) })
}

// build writes a segment of those sources for which known returns false, or
// returns nil if there are none. Entries that a segment of v already has are
// left out, even if no source covers their pack now: the new segment's sources
// cover it.
func (t *intake) build(v *view, known func(source string) bool) (made *segment, err error) {
	const none = ^uint32(0)
	var fresh []intakeSource
	taken := make(map[string]bool)
	numbers := slices.Repeat([]uint32{none}, len(t.ids)) // by our number: the number in the segment
	for _, s := range t.sources {
		if known(s.name) || taken[s.name] {
			continue
		}
		taken[s.name] = true
		fresh = append(fresh, s)
		for _, n := range s.packs {
			numbers[n] = 0
		}
	}
	if len(fresh) == 0 {
		return nil, nil
	}
	var order []uint32
	for n, of := range numbers {
		if of != none {
			order = append(order, uint32(n))
		}
	}
	slices.SortFunc(order, func(a, b uint32) int { return bytes.Compare(t.ids[a][:], t.ids[b][:]) })
	for i, n := range order {
		numbers[n] = uint32(i)
	}
	elsewhere := make([][]packIn, len(order)) // by number in the segment
	some := false
	for i, n := range order {
		elsewhere[i] = v.elsewhere(&t.ids[n])
		some = some || len(elsewhere[i]) > 0
	}
	left := func(r *row) bool { return !holds(elsewhere[r.pack], r.hi, r.lo, r.offset, r.length) }
	entries := uint64(t.rows.n)
	if some {
		if entries, err = t.count(numbers, left); err != nil {
			return nil, err
		}
	}

	budget := int64(filterMemory)
	for _, s := range v.segments {
		budget -= int64(len(s.filter))
	}
	out, err := t.rows.folder.create()
	if err != nil {
		return nil, err
	}
	defer out.discard()
	b, err := newBuilder(out, entries, len(order), budget)
	if err != nil {
		return nil, err
	}
	if err := t.sorted(numbers, func(rows []row) error {
		var last row
		for i := range rows {
			r := &rows[i]
			if i > 0 && *r == last {
				continue
			}
			last = *r
			if some && !left(r) {
				continue
			}
			if err := b.entry(r.hi, r.lo, r.pack, r.offset, r.length); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for _, n := range order {
		if err := b.pack(t.ids[n][:], t.sizes[n]); err != nil {
			return nil, err
		}
	}
	var covers []uint32
	for _, s := range fresh {
		covers = covers[:0]
		for _, n := range s.packs {
			covers = append(covers, numbers[n])
		}
		if err := b.source(s.name, covers); err != nil {
			return nil, err
		}
	}
	size, err := b.finish()
	if err != nil {
		return nil, err
	}
	return out.segment(size)
}

// each calls fn for every row whose prefix starts with the byte first. Rows of
// packs that have no number are left out.
func (t *intake) each(first byte, numbers []uint32, fn func(r row)) error {
	return t.rows.each(first, func(p []byte) error {
		for ; len(p) > 0; p = p[entrySize:] {
			le := binary.LittleEndian
			if pack := numbers[le.Uint32(p[16:])]; pack != ^uint32(0) {
				hi, lo := split(Prefix(p))
				fn(row{hi, lo, pack, le.Uint32(p[20:]), le.Uint32(p[24:])})
			}
		}
		return nil
	})
}

// count returns the number of rows for which left returns true. Duplicate rows
// are counted each time.
func (t *intake) count(numbers []uint32, left func(r *row) bool) (n uint64, err error) {
	for i := range spoolParts {
		if err := t.each(byte(i), numbers, func(r row) {
			if left(&r) {
				n++
			}
		}); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// sorted calls fn with all rows in order, in parts. The next part is sorted
// while fn runs.
//
// Pipeline: one goroutine takes a slice from spare, fills and sorts it, and sends it
// through parts, which is unbuffered and which it closes at the end; the other calls
// fn and returns the slice to spare. The two slices bound the memory; spare is never
// closed. After an error of fn, the sorter stops through ctx.
func (t *intake) sorted(numbers []uint32, fn func(rows []row) error) error {
	parts := make(chan []row)
	spare := make(chan []row, 2)
	spare <- nil
	spare <- nil
	g, ctx := errgroup.WithContext(context.Background())
	g.Go(func() error {
		defer close(parts)
		var scratch []row
		for i := range spoolParts {
			n := t.rows.count(byte(i))
			if n == 0 {
				continue
			}
			var rows []row
			select {
			case rows = <-spare:
			case <-ctx.Done():
				return nil
			}
			rows = slices.Grow(rows[:0], n)
			if err := t.each(byte(i), numbers, func(r row) { rows = append(rows, r) }); err != nil {
				return err
			}
			scratch = slices.Grow(scratch[:0], len(rows))[:len(rows)]
			sortRows(rows, scratch)
			select {
			case parts <- rows:
			case <-ctx.Done():
				return nil
			}
		}
		return nil
	})
	g.Go(func() error {
		for rows := range parts {
			if err := fn(rows); err != nil {
				return err
			}
			spare <- rows // has capacity for both
		}
		return nil
	})
	return g.Wait()
}

// sortRows sorts rows that have the same first byte. Because keys are evenly
// distributed, it first distributes the rows over buckets of about eight.
func sortRows(rows, scratch []row) {
	compare := func(a, b row) int { return a.compare(&b) }
	width := bits.Len(uint(len(rows) / 8))
	if width == 0 {
		slices.SortFunc(rows, compare)
		return
	}
	bucket := func(r *row) uint64 { return r.hi << 8 >> (64 - width) }
	ends := make([]uint32, 1<<width)
	for i := range rows {
		ends[bucket(&rows[i])]++
	}
	sum := uint32(0)
	for i, n := range ends {
		ends[i], sum = sum, sum+n
	}
	for i := range rows {
		k := bucket(&rows[i])
		scratch[ends[k]] = rows[i]
		ends[k]++
	}
	copy(rows, scratch)
	from := uint32(0)
	for _, to := range ends {
		if to-from > 1 {
			slices.SortFunc(rows[from:to], compare)
		}
		from = to
	}
}
