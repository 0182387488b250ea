// Package probe tests the behaviour of a storage before data is entrusted to
// it: it writes objects of its own, reads and lists them in every way that a
// repository does, and removes them again.
package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"xenkeep/chunkstore/object"

	"golang.org/x/sync/errgroup"
)

// State is the outcome of one check.
type State string

// The outcomes of a check.
const (
	OK   State = "ok"
	None State = "none" // not offered, and not required by everyone
	Warn State = "warn"
	Fail State = "fail" // a repository would not be safe here
)

// Result is the result of one check.
type Result struct {
	Check   string  `json:"check"`
	State   State   `json:"state"`
	Text    string  `json:"text"`
	Hint    string  `json:"hint,omitempty"`
	Seconds float64 `json:"duration_s"`
}

// Options configure a probe.
type Options struct {
	// LockFor is how long the probe locks an object, and therefore waits; 0
	// means 10 s.
	LockFor time.Duration
	// ListWait is how long the probe waits for a new object to appear in
	// listings. 0 means twice the delay that the storage declares, but at least
	// 5 s.
	ListWait time.Duration
	// Conditional puts an object only if there is none of this name. It is nil
	// if the backend cannot do this.
	Conditional func(ctx context.Context, name string, data []byte) error
	// Skew returns how far the storage's clock is ahead of ours; nil means
	// unknown.
	Skew  func() time.Duration
	Found func(Result) // is called with each result as soon as there is one
}

const (
	small    = 64 << 10
	packSize = 32 << 20
	many     = 16
)

type prober struct {
	s      object.Store
	o      Options
	prefix string
	put    []string // to be removed at the end
	all    []Result
}

// Run tries out a storage. It returns an error only if the probe itself fails,
// for example because ctx ends; failures of the storage are in the results.
func Run(ctx context.Context, s object.Store, o Options) ([]Result, error) {
	if o.LockFor <= 0 {
		o.LockFor = 10 * time.Second
	}
	if o.ListWait <= 0 {
		o.ListWait = max(2*s.Traits().ListDelay, 5*time.Second)
	}
	var random [8]byte
	_, _ = rand.Read(random[:])
	p := &prober{s: s, o: o, prefix: "probe-" + hex.EncodeToString(random[:]) + "/"}
	defer p.clean(ctx)
	for _, c := range []struct {
		name string
		run  func(ctx context.Context) (State, string, error)
	}{
		{"write and read", p.readAfterWrite},
		{"replace", p.replace},
		{"listing", p.listing},
		{"ranged reads", p.ranges},
		{"at once", p.atOnce},
		{"pack", p.pack},
		{"clock", p.clock},
		{"conditional put", p.conditional},
		{"delete", p.delete},
		{"versions", p.versions},
		{"object lock", p.lock},
	} {
		began := time.Now()
		state, text, err := c.run(ctx)
		if ctx.Err() != nil {
			return p.all, context.Cause(ctx)
		}
		r := Result{Check: c.name, State: state, Text: text, Seconds: time.Since(began).Seconds()}
		if err != nil {
			r.Text, r.Hint = err.Error(), object.HintOf(err)
		}
		p.all = append(p.all, r)
		if o.Found != nil {
			o.Found(r)
		}
		if c.name == "write and read" && state == Fail {
			break // the other checks would be meaningless
		}
	}
	return p.all, nil
}

// clean removes the remaining objects, as far as that is allowed.
func (p *prober) clean(ctx context.Context) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, name := range p.put {
		_ = p.s.Delete(clean, name)
		p.removeVersions(clean, name)
	}
}

// removeVersions removes the older versions too.
func (p *prober) removeVersions(ctx context.Context, name string) {
	if k, ok := object.VersionedOf(p.s); ok {
		k.SetLockDays(1) // so that Delete removes them
		_ = k.Delete(ctx, name)
		k.SetLockDays(0)
	}
}

func (p *prober) fresh(ctx context.Context, name string, data []byte) (string, error) {
	name = p.prefix + name
	p.put = append(p.put, name)
	return name, p.s.Put(ctx, name, data)
}

func content(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.Read(data)
	return data
}

func (p *prober) readAfterWrite(ctx context.Context) (State, string, error) {
	for i := range many {
		data := content(small)
		name := fmt.Sprintf("%sread-%d", p.prefix, i)
		// This asks for the object before it exists: some storage then
		// continues to report that it does not exist.
		if _, err := p.s.Stat(ctx, name); !errors.Is(err, object.ErrNotFound) {
			return Fail, "", fmt.Errorf("an object that does not exist was found: %w", orNil(err))
		}
		if _, err := p.fresh(ctx, fmt.Sprintf("read-%d", i), data); err != nil {
			return Fail, "", err
		}
		got, err := p.s.Get(ctx, name, 0, -1)
		if err != nil {
			return Fail, "", fmt.Errorf("an object that was just written cannot be read: %w", err)
		}
		if !bytes.Equal(got, data) {
			return Fail, "", errors.New("the bytes read differ from the bytes written")
		}
		if i, err := p.s.Stat(ctx, name); err != nil || i.Size != small {
			return Fail, "", fmt.Errorf("its size is reported as %d: %w", i.Size, orNil(err))
		}
	}
	return OK, fmt.Sprintf("%d objects were read as soon as they were written", many), nil
}

func orNil(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

func (p *prober) replace(ctx context.Context) (State, string, error) {
	var last []byte
	for range 4 {
		last = content(small)
		name, err := p.fresh(ctx, "replaced", last)
		if errors.Is(err, object.ErrPermission) {
			return Warn, "refused: this suits credentials that may only add objects; changing a password or the config needs it", nil
		}
		if err != nil {
			return Fail, "", err
		}
		if got, err := p.s.Get(ctx, name, 0, -1); err != nil || !bytes.Equal(got, last) {
			return Fail, "", fmt.Errorf("an older version was read: %w", orNil(err))
		}
	}
	return OK, "after an object is replaced, its new content is read", nil
}

func (p *prober) listing(ctx context.Context) (State, string, error) {
	want := make(map[string]bool)
	for i := range many {
		name, err := p.fresh(ctx, fmt.Sprintf("list/%d", i), []byte{1})
		if err != nil {
			return Fail, "", err
		}
		want[name] = true
	}
	began := time.Now()
	for first := true; ; first = false {
		missing := len(want)
		if err := p.s.List(ctx, p.prefix+"list/", func(i object.Info) error {
			if want[i.Name] {
				missing--
			}
			return nil
		}); err != nil {
			return Fail, "", err
		}
		delay := time.Since(began)
		declared := p.s.Traits().ListDelay
		switch {
		case missing == 0 && first:
			return OK, fmt.Sprintf("new objects are listed immediately; a delay of up to %v is allowed", declared), nil
		case missing == 0 && delay <= declared:
			return OK, fmt.Sprintf("new objects are listed after %v; a delay of up to %v is allowed", delay.Round(time.Millisecond), declared), nil
		case missing == 0:
			return Fail, "", fmt.Errorf("new objects are listed after %v, later than the allowed %v: a prune could delete data that a backup needs", delay.Round(time.Millisecond), declared)
		case delay > p.o.ListWait:
			return Fail, "", fmt.Errorf("%d of %d new objects are not listed after %v", missing, many, p.o.ListWait)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return Fail, "", err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (p *prober) ranges(ctx context.Context) (State, string, error) {
	data := content(1 << 20)
	name, err := p.fresh(ctx, "ranges", data)
	if err != nil {
		return Fail, "", err
	}
	for _, r := range [][2]int64{{0, 1}, {1000, 70_000}, {1<<20 - 5, 5}, {500_000, -1}, {-96 << 10, -1}, {-4 << 20, -1}} {
		got, err := p.s.Get(ctx, name, r[0], r[1])
		if err != nil {
			return Fail, "", err
		}
		from, n, _ := object.Span("get", name, int64(len(data)), r[0], r[1])
		if !bytes.Equal(got, data[from:from+n]) {
			return Fail, "", fmt.Errorf("range %d+%d: the bytes read differ from the bytes written", r[0], r[1])
		}
	}
	if _, err := p.s.Get(ctx, name, 1<<20-5, 10); !errors.Is(err, object.ErrShort) {
		return Fail, "", fmt.Errorf("a range after the end is not refused: %w", orNil(err))
	}
	return OK, "parts of an object can be read, also from its end, and also if the object is shorter than the requested part", nil
}

func (p *prober) atOnce(ctx context.Context) (State, string, error) {
	n := max(2, p.s.Traits().Parallel)
	g, gctx := errgroup.WithContext(ctx)
	for i := range 2 * n {
		name := fmt.Sprintf("%sonce-%d", p.prefix, i)
		p.put = append(p.put, name)
		g.Go(func() error {
			data := content(small)
			if err := p.s.Put(gctx, name, data); err != nil {
				return err
			}
			got, err := p.s.Get(gctx, name, 0, -1)
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("the bytes read differ from the bytes written")
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return Fail, "", err
	}
	return OK, fmt.Sprintf("%d concurrent requests", n), nil
}

func (p *prober) pack(ctx context.Context) (State, string, error) {
	data := content(packSize)
	began := time.Now()
	name, err := p.fresh(ctx, "pack", data)
	if err != nil {
		return Fail, "", err
	}
	put := time.Since(began)
	began = time.Now()
	got := make([]byte, packSize)
	if err := p.s.GetInto(ctx, name, 0, got); err != nil {
		return Fail, "", err
	}
	if !bytes.Equal(got, data) {
		return Fail, "", errors.New("the bytes read differ from the bytes written")
	}
	rate := func(d time.Duration) float64 { return packSize / (1 << 20) / d.Seconds() }
	return OK, fmt.Sprintf("32 MiB written at %.0f MiB/s, read at %.0f MiB/s, by one request each", rate(put), rate(time.Since(began))), nil
}

func (p *prober) clock(ctx context.Context) (State, string, error) {
	var skew time.Duration
	if p.o.Skew != nil {
		skew = p.o.Skew()
	} else {
		name, err := p.fresh(ctx, "clock", []byte{1})
		if err != nil {
			return Fail, "", err
		}
		i, err := p.s.Stat(ctx, name)
		if err != nil {
			return Fail, "", err
		}
		skew = time.Until(i.Modified).Round(time.Second)
	}
	switch off := skew.Abs(); {
	case off < 5*time.Second:
		return OK, "the storage's clock agrees with this machine's", nil
	case off < 5*time.Minute:
		return Warn, fmt.Sprintf("the storage's clock is %v from this machine's", skew), nil
	default:
		return Fail, "", fmt.Errorf("the storage's clock is %v from this machine's: set the clock", skew)
	}
}

func (p *prober) conditional(ctx context.Context) (State, string, error) {
	if p.o.Conditional == nil {
		return None, "unknown for this kind of storage; nothing needs it", nil
	}
	name := p.prefix + "conditional"
	p.put = append(p.put, name)
	if err := p.o.Conditional(ctx, name, []byte("first")); err != nil {
		return None, "not offered (--s3-no-overwrite cannot be used): " + err.Error(), nil
	}
	err := p.o.Conditional(ctx, name, []byte("second"))
	got, gerr := p.s.Get(ctx, name, 0, -1)
	switch {
	case gerr != nil:
		return Fail, "", gerr
	case err == nil || string(got) != "first":
		return None, "ignored: an object was replaced nevertheless (--s3-no-overwrite has no effect)", nil
	}
	return OK, "an existing object is not replaced (--s3-no-overwrite)", nil
}

func (p *prober) delete(ctx context.Context) (State, string, error) {
	name, err := p.fresh(ctx, "deleted", []byte{1})
	if err != nil {
		return Fail, "", err
	}
	if err := p.s.Delete(ctx, name); errors.Is(err, object.ErrPermission) {
		return Warn, "refused: backups do not need it, but forget and prune do, perhaps with other credentials. The objects of this probe remain below " + p.prefix, nil
	} else if err != nil {
		return Fail, "", err
	}
	if _, err := p.s.Get(ctx, name, 0, -1); !errors.Is(err, object.ErrNotFound) {
		return Fail, "", fmt.Errorf("a deleted object is still read: %w", orNil(err))
	}
	still := false
	if err := p.s.List(ctx, name, func(i object.Info) error { still = still || i.Name == name; return nil }); err != nil {
		return Fail, "", err
	}
	if still && p.s.Traits().ListDelay == 0 {
		return Fail, "", errors.New("a deleted object is still listed")
	}
	if err := p.s.Delete(ctx, name); err != nil {
		return Fail, "", fmt.Errorf("deleting an object that does not exist: %w", err)
	}
	return OK, "deleted objects are neither read nor listed", nil
}

func (p *prober) versions(ctx context.Context) (State, string, error) {
	k, ok := object.VersionedOf(p.s)
	if !ok {
		return None, "this kind of storage keeps no older versions", nil
	}
	var name string
	var err error
	for _, text := range []string{"older", "newer"} {
		if name, err = p.fresh(ctx, "versions", []byte(text)); errors.Is(err, object.ErrPermission) {
			return None, "unknown: objects cannot be replaced", nil
		} else if err != nil {
			return Fail, "", err
		}
	}
	var ids []string
	err = k.ListVersions(ctx, name, func(v object.Version) error {
		if v.Name == name {
			ids = append(ids, v.ID)
		}
		return nil
	})
	if err != nil {
		return None, "cannot be listed: " + err.Error(), nil
	}
	if len(ids) < 2 {
		return None, "the bucket keeps no older versions: overwritten objects are lost", nil
	}
	if got, err := k.GetVersion(ctx, name, ids[1], 0, -1); err != nil || string(got) != "older" {
		return Fail, "", fmt.Errorf("the older version is read as %q: %w", got, orNil(err))
	}
	return OK, "overwritten objects are kept as versions, and can be read", nil
}

func (p *prober) lock(ctx context.Context) (State, string, error) {
	k, ok := object.VersionedOf(p.s)
	if !ok {
		return None, "this kind of storage does not lock objects", nil
	}
	if i := slices.IndexFunc(p.all, func(r Result) bool { return r.Check == "versions" }); i >= 0 && p.all[i].State == None {
		return None, "not possible without versions", nil
	}
	name, err := p.fresh(ctx, "locked", []byte{1})
	if err != nil {
		return Fail, "", err
	}
	until := time.Now().Add(p.o.LockFor + time.Second).Truncate(time.Second)
	if err := k.Lock(ctx, name, "", until); err != nil {
		return None, "objects are not locked: " + err.Error() + " (init --lock-days cannot be used)", nil
	}
	got, err := k.LockedUntil(ctx, name, "")
	if err != nil || got.Before(until.Add(-time.Second)) {
		return Fail, "", fmt.Errorf("a lock until %v is reported as %v: %w", until, got, orNil(err))
	}
	var id string
	if err := k.ListVersions(ctx, name, func(v object.Version) error {
		if v.Name == name && v.Latest {
			id = v.ID
		}
		return nil
	}); err != nil {
		return Fail, "", err
	}
	// Like an attacker, try to delete the version itself.
	if r, ok := p.s.(interface {
		RemoveVersion(ctx context.Context, name, id string) error
	}); ok {
		if err := r.RemoveVersion(ctx, name, id); err == nil {
			return Fail, "", errors.New("a locked version was deleted")
		}
		if _, err := k.GetVersion(ctx, name, id, 0, -1); err != nil {
			return Fail, "", fmt.Errorf("a locked version cannot be read after an attempt to delete it: %w", err)
		}
	}
	if err := wait(ctx, time.Until(until)+time.Second); err != nil {
		return Fail, "", err
	}
	return OK, "locked versions cannot be deleted until their lock ends", nil
}
