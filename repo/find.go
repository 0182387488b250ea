package repo

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrRenamed is returned by commands that must not guess, if a VM is named by a
// name that it had earlier.
var ErrRenamed = errors.New("the VM has another name now")

// AmbiguousError is returned if a name may mean several VMs, or one VM on several
// pools. It lists them.
type AmbiguousError struct {
	Name   string
	Means  []string // "VM UUID (newest snapshot DATE)", "pool NAME (...)"
	Advice string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%q: %v: %s", e.Name, ErrAmbiguous, strings.Join(e.Means, ", "))
}

// Is makes the error match ErrAmbiguous.
func (e *AmbiguousError) Is(target error) bool { return target == ErrAmbiguous }

// Hint returns the next step.
func (e *AmbiguousError) Hint() string { return e.Advice }

// A VM is a VM that has snapshots. One UUID is one VM, on whatever pool it is: a VM
// that was restored to another pool with its UUID is the same VM. An image has no
// UUID and is identified by its origin, pool and name.
type VM struct {
	UUID string
	Name string // of its newest snapshot
	// Former is set if the VM was asked for by a name that it no longer has.
	Former bool

	asked     string
	key       string
	pool      string // the pool that was asked for, a name or UUID; "" is any
	snapshots []*Snapshot
}

// Snapshots returns the VM's snapshots, in the order in which FindVM got them.
func (v *VM) Snapshots() []*Snapshot { return v.snapshots }

// Has reports whether a snapshot is one of the VM's.
func (v *VM) Has(s *Snapshot) bool { return vmKey(s) == v.key && onPool(s, v.pool) }

// onPool reports whether a snapshot comes from the pool with this name or UUID; ""
// matches any pool.
func onPool(s *Snapshot, pool string) bool {
	return pool == "" || s.Pool.UUID == pool || s.Pool.Name == pool
}

// Renamed returns ErrRenamed with both names, or nil if the VM was asked for by its
// present name or UUID.
func (v *VM) Renamed() error {
	if !v.Former {
		return nil
	}
	return fmt.Errorf("%q: %w: %q (%s)", v.asked, ErrRenamed, v.Name, v.UUID)
}

// vmKey returns the key that distinguishes VMs.
func vmKey(s *Snapshot) string {
	if s.VM.UUID != "" {
		return s.VM.UUID
	}
	return strings.Join([]string{s.Origin, s.Pool.UUID, s.VM.Name}, "\x00")
}

// FindVM returns the VM that a user names: by a name, a UUID, or POOL/NAME or
// POOL/UUID with a pool's name or UUID. A name means the VM that has it in its
// newest snapshot; if no VM has it any more, the VM that had it. all must be in the
// order that Snapshots returns.
func FindVM(all []*Snapshot, name string) (*VM, error) {
	v, err := findVM(all, "", name)
	if !errors.Is(err, ErrNoSnapshot) {
		return v, err
	}
	for i := range name {
		if name[i] != '/' {
			continue
		}
		v, perr := findVM(all, name[:i], name[i+1:])
		if !errors.Is(perr, ErrNoSnapshot) {
			return v, perr
		}
	}
	return nil, err
}

func findVM(all []*Snapshot, pool, name string) (*VM, error) {
	if name == "" {
		return nil, fmt.Errorf("VM %q: %w", name, ErrNoSnapshot)
	}
	byKey := make(map[string]*VM)
	var present, former, byUUID []*VM
	for _, s := range all {
		if !onPool(s, pool) {
			continue
		}
		k := vmKey(s)
		if byKey[k] == nil {
			byKey[k] = &VM{UUID: s.VM.UUID, asked: name, key: k, pool: pool}
		}
		byKey[k].Name = s.VM.Name
		byKey[k].snapshots = append(byKey[k].snapshots, s)
	}
	for _, v := range byKey {
		switch {
		case v.UUID != "" && strings.EqualFold(v.UUID, name):
			byUUID = append(byUUID, v)
		case v.Name == name:
			present = append(present, v)
		case slices.ContainsFunc(v.snapshots, func(s *Snapshot) bool { return s.VM.Name == name }):
			v.Former = true
			former = append(former, v)
		}
	}
	for _, found := range [][]*VM{byUUID, present, former} {
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0], nil
		}
		return nil, ambiguousVMs(name, found)
	}
	return nil, fmt.Errorf("VM %q: %w", name, ErrNoSnapshot)
}

func ambiguousVMs(name string, found []*VM) error {
	slices.SortFunc(found, func(a, b *VM) int {
		x, y := a.newest(), b.newest()
		return cmp.Or(y.DataTime.Compare(x.DataTime), strings.Compare(vmKey(x), vmKey(y)))
	})
	e := &AmbiguousError{Name: name, Advice: "name the VM by its UUID"}
	for _, v := range found {
		s := v.newest()
		where := "VM " + v.UUID
		if v.UUID == "" {
			where = s.Origin
			e.Advice = "name a snapshot by its ID; xenkeep snapshots lists them"
		}
		if s.Pool.Name != "" {
			where += " of pool " + s.Pool.Name
		}
		e.Means = append(e.Means, fmt.Sprintf("%s (newest snapshot %s)", where, stamp(s.DataTime, time.Local)))
	}
	return e
}

func (v *VM) newest() *Snapshot { return v.snapshots[len(v.snapshots)-1] }

func stamp(t time.Time, where *time.Location) string { return t.In(where).Format("2006-01-02 15:04") }

// onOnePool returns an error for a VM whose snapshots come from several pools in
// the same period: then two VMs with one UUID exist, and the reference is
// ambiguous. A VM that moved has all its snapshots from one pool before those from
// the next.
func (v *VM) onOnePool(spec string) error {
	type span struct{ first, last *Snapshot }
	spans := make(map[string]*span)
	var order []*span
	for _, s := range v.snapshots {
		if !s.Complete {
			continue
		}
		k := s.Origin + "\x00" + s.Pool.UUID
		if spans[k] == nil {
			spans[k] = &span{first: s}
			order = append(order, spans[k])
		}
		spans[k].last = s
	}
	// order is sorted by first; the spans are disjoint if each ends before the next
	// begins.
	for i := 1; i < len(order); i++ {
		if order[i-1].last.DataTime.Before(order[i].first.DataTime) {
			continue
		}
		e := &AmbiguousError{Name: spec, Advice: "name the pool too: latest:POOL/VM or POOL/VM@TIME"}
		for _, o := range order {
			p := cmp.Or(o.last.Pool.Name, o.last.Pool.UUID, o.last.Origin)
			if o.last.Pool.Name != "" && o.last.Pool.UUID != "" {
				p += " (" + o.last.Pool.UUID + ")"
			}
			e.Means = append(e.Means, fmt.Sprintf("pool %s has it, newest snapshot %s", p, stamp(o.last.DataTime, time.Local)))
		}
		return e
	}
	return nil
}

// Choice is the snapshot that a user's reference selects.
type Choice struct {
	Snapshot *Snapshot
	// Bare is set for "latest" without a VM.
	Bare bool
	// Note explains why the snapshot may not be the one that the user expects: its
	// VM has another name now, or it is older than the day that was named.
	Note string
}

// Resolve is Choose with the clock and time zone of this machine.
func Resolve(all []*Snapshot, spec string) (*Snapshot, error) {
	c, err := Choose(all, spec, time.Now())
	return c.Snapshot, err
}

// Choose returns the snapshot that a user's reference selects: "latest",
// "latest:VM", "VM@TIME", or an ID or a unique prefix of one. VM is in the form
// that FindVM takes and TIME in the form that ParseWhen takes: VM@TIME selects the
// newest complete snapshot that is not after TIME. Days and hours are those of
// now's time zone. all must be in the order that Snapshots returns.
func Choose(all []*Snapshot, spec string, now time.Time) (Choice, error) {
	if spec == "latest" {
		s := Latest(all, func(s *Snapshot) bool { return s.Origin != OriginDatabase })
		if s == nil {
			return Choice{}, fmt.Errorf("%q: %w", spec, ErrNoSnapshot)
		}
		return Choice{Snapshot: s, Bare: true, Note: groupNote(slices.DeleteFunc(slices.Clone(all), func(o *Snapshot) bool { return vmKey(o) != vmKey(s) }), s)}, nil
	}
	if vm, ok := strings.CutPrefix(spec, "latest:"); ok {
		return latestOf(all, spec, vm)
	}
	if i := strings.LastIndexByte(spec, '@'); i >= 0 {
		return at(all, spec, spec[:i], spec[i+1:], now)
	}
	s, err := byID(all, spec)
	return Choice{Snapshot: s}, err
}

func latestOf(all []*Snapshot, spec, vm string) (Choice, error) {
	v, err := FindVM(all, vm)
	if err == nil {
		err = v.onOnePool(spec)
	}
	if err != nil {
		return Choice{}, err
	}
	s := Latest(v.snapshots, func(*Snapshot) bool { return true })
	if s == nil {
		return Choice{}, fmt.Errorf("%q: no complete snapshot: %w", spec, ErrNoSnapshot)
	}
	return Choice{Snapshot: s, Note: joined(v.note(), groupNote(v.snapshots, s))}, nil
}

// groupNote explains of which group of writers s is, if others have written complete
// snapshots of its VM too; otherwise it is "".
func groupNote(all []*Snapshot, s *Snapshot) string {
	newest := make(map[string]*Snapshot)
	for _, o := range all {
		if o.Complete {
			newest[o.group] = o
		}
	}
	if len(newest) < 2 {
		return ""
	}
	var others []string
	for g, o := range newest {
		if g != s.group {
			others = append(others, fmt.Sprintf("the newest of %s is %s of %s", GroupText(g), o.Short(), stamp(o.DataTime, time.Local)))
		}
	}
	slices.Sort(others)
	return fmt.Sprintf("it was written with %s; %s; --writer selects", GroupText(s.group), strings.Join(others, ", "))
}

// joined joins notes.
func joined(notes ...string) string {
	return strings.Join(slices.DeleteFunc(notes, func(n string) bool { return n == "" }), "; ")
}

func (v *VM) note() string {
	if !v.Former {
		return ""
	}
	return fmt.Sprintf("VM %q is called %q now", v.asked, v.Name)
}

// at returns the newest complete snapshot of a VM up to a time.
func at(all []*Snapshot, spec, vm, when string, now time.Time) (Choice, error) {
	w, err := ParseWhen(when, now)
	if err != nil {
		return Choice{}, err
	}
	v, err := FindVM(all, vm)
	if err != nil {
		return Choice{}, err
	}
	var past []*Snapshot
	for _, s := range v.snapshots {
		if s.DataTime.Before(w.End) {
			past = append(past, s)
		}
	}
	then := *v
	then.snapshots = past
	if err := then.onOnePool(spec); err != nil {
		return Choice{}, err
	}
	s := Latest(past, func(*Snapshot) bool { return true })
	if s == nil {
		return Choice{}, fmt.Errorf("%q: no complete snapshot so early; %s: %w", spec, nearest(v.snapshots, w, now.Location()), ErrNoSnapshot)
	}
	c := Choice{Snapshot: s}
	if s.VM.Name != v.asked { // the VM's name at that time needs no note
		c.Note = v.note()
	}
	if s.DataTime.Before(w.Begin) {
		c.Note = fmt.Sprintf("%q: the newest snapshot before the end of that time is of %s; %s", spec, stamp(s.DataTime, now.Location()), nearest(v.snapshots, w, now.Location()))
	}
	c.Note = joined(c.Note, groupNote(past, s))
	return c, nil
}

// nearest returns text that lists the three snapshots nearest to a time.
func nearest(all []*Snapshot, w When, where *time.Location) string {
	distance := func(s *Snapshot) time.Duration {
		switch {
		case s.DataTime.Before(w.Begin):
			return w.Begin.Sub(s.DataTime)
		case s.DataTime.Before(w.End):
			return 0
		}
		return s.DataTime.Sub(w.End)
	}
	near := slices.DeleteFunc(slices.Clone(all), func(s *Snapshot) bool { return !s.Complete })
	slices.SortStableFunc(near, func(a, b *Snapshot) int { return cmp.Compare(distance(a), distance(b)) })
	near = near[:min(3, len(near))]
	if len(near) == 0 {
		return "the VM has no complete snapshot"
	}
	slices.SortFunc(near, func(a, b *Snapshot) int { return a.DataTime.Compare(b.DataTime) })
	names := make([]string, len(near))
	for i, s := range near {
		names[i] = s.Short() + " of " + stamp(s.DataTime, where)
	}
	return "the nearest are " + strings.Join(names, ", ")
}

func byID(all []*Snapshot, spec string) (*Snapshot, error) {
	if len(spec) < 4 {
		return nil, fmt.Errorf("%q: %w: type at least four characters of an ID", spec, ErrNoSnapshot)
	}
	var found *Snapshot
	for _, s := range all {
		if strings.HasPrefix(s.id, strings.ToLower(spec)) {
			if found != nil {
				return nil, fmt.Errorf("%q: %w", spec, ErrAmbiguous)
			}
			found = s
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%q: %w", spec, ErrNoSnapshot)
	}
	return found, nil
}
