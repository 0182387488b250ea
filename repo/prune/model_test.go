package prune_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"

	"pgregory.net/rapid"
)

// sound is a check that reads everything. It ignores packs that index objects name
// wrongly or do not name, if no snapshot is affected, and it ignores withdrawn
// snapshots.
func sound(ctx context.Context, objects object.Store) error {
	r, err := repotest.TryOpen(ctx, objects, repo.Options{})
	if err != nil {
		return err
	}
	rep, err := check.Run(ctx, r, check.Options{ReadData: true})
	if err != nil {
		return err
	}
	for _, f := range rep.Findings {
		if f.Object == "index/" && strings.Contains(f.Error, "no index object covers") || strings.Contains(f.Error, repo.ErrWithdrawn.Error()) {
			continue
		}
		return fmt.Errorf("%d snapshots: %v", rep.Snapshots, f)
	}
	return nil
}

// client is a run or a prune that the model can pause before any of its calls to
// the storage, for any length of time.
type client struct {
	name   string
	orders chan order
	paused chan struct{} // the client has made them
	over   chan error
	cancel context.CancelFunc
}

// order is the number of calls that a client may make; a negative number kills it.
// With until it is paused earlier, before it puts or deletes something under that
// prefix.
type order struct {
	calls int
	until string
}

const toEnd = 1 << 30 // calls

// gate admits one client's calls as the model orders. A client makes one call at a
// time.
type gate struct {
	object.Store
	c     *client
	mu    sync.Mutex
	left  int
	until string
	dead  bool
}

var errKilled = &object.Error{Op: "put", Name: "-", Class: object.ErrPermission}

// pass is called with the name that a call puts or deletes.
func (g *gate) pass(changes string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return errKilled
	}
	if g.until != "" && strings.HasPrefix(changes, g.until) {
		g.left = 0
	}
	for g.left == 0 {
		g.c.paused <- struct{}{}
		o := <-g.c.orders
		if o.calls < 0 {
			g.dead = true
			return errKilled
		}
		g.left, g.until = o.calls, o.until
	}
	g.left--
	return nil
}

func (g *gate) Put(ctx context.Context, name string, data []byte) error {
	if err := g.pass(name); err != nil {
		return err
	}
	return g.Store.Put(ctx, name, data)
}

func (g *gate) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	if err := g.kill(); err != nil {
		return nil, err
	}
	return g.Store.Get(ctx, name, offset, length)
}

func (g *gate) kill() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return errKilled
	}
	return nil
}

func (g *gate) Stat(ctx context.Context, name string) (object.Info, error) {
	if err := g.pass(""); err != nil {
		return object.Info{}, err
	}
	return g.Store.Stat(ctx, name)
}

func (g *gate) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	if err := g.pass(""); err != nil {
		return err
	}
	return g.Store.List(ctx, prefix, fn)
}

func (g *gate) Delete(ctx context.Context, name string) error {
	if err := g.pass(name); err != nil {
		return err
	}
	return g.Store.Delete(ctx, name)
}

func (g *gate) Traits() object.Traits {
	tr := g.Store.Traits()
	tr.Parallel = 1
	return tr
}

// world is a repository and its clients.
type world struct {
	ctx     context.Context
	c       *repotest.Clock
	inner   object.Store
	store   *objecttest.Faulty
	clients []*client
	n       int
	killed  map[string]bool // machines whose run was killed
	log     []string
}

func newWorld(ctx context.Context, declared, actual time.Duration) (*world, error) {
	w := &world{ctx: ctx, c: repotest.NewClock(), inner: mem.New(), killed: make(map[string]bool)}
	if _, err := repo.Init(ctx, w.inner, repo.Options{Secret: repotest.Secret()}); err != nil {
		return nil, err
	}
	w.store = objecttest.NewFaulty(w.inner)
	w.store.DelayLists(declared, actual, w.c.Now)
	return w, nil
}

func (w *world) say(format string, args ...any) {
	w.log = append(w.log, w.c.Now().Format("02 15:04:05 ")+fmt.Sprintf(format, args...))
}

// start starts a client that is paused before its first call.
func (w *world) start(name string, fn func(ctx context.Context, objects object.Store) error) {
	w.n++
	ctx, cancel := context.WithCancel(w.ctx)
	c := &client{name: fmt.Sprintf("%s %d", name, w.n), orders: make(chan order), paused: make(chan struct{}), over: make(chan error, 1), cancel: cancel}
	g := &gate{Store: w.store, c: c}
	go func() { c.over <- fn(ctx, g) }()
	w.clients = append(w.clients, c)
	w.say("%s begins", c.name)
	w.settle(c)
}

// settle waits until a client is paused again or has ended.
func (w *world) settle(c *client) {
	select {
	case <-c.paused:
	case err := <-c.over:
		c.cancel()
		w.say("%s is over: %v", c.name, err)
		for i, o := range w.clients {
			if o == c {
				w.clients = append(w.clients[:i], w.clients[i+1:]...)
				break
			}
		}
	}
}

func (w *world) step(c *client, n int) {
	w.say("%s does %d calls", c.name, n)
	c.orders <- order{calls: n}
	w.settle(c)
}

// until lets a client continue until it is about to put or delete something under
// the prefix.
func (w *world) until(c *client, prefix string) {
	w.say("%s goes on until it changes %s", c.name, prefix)
	c.orders <- order{toEnd, prefix}
	w.settle(c)
}

func (w *world) kill(c *client) {
	w.say("%s is killed", c.name)
	w.killed[c.name] = true
	c.orders <- order{calls: -1}
	w.settle(c)
}

// backup starts a run. As on a real machine, with restart it drops the claims of
// runs that were killed there, and adopts the packs that they left.
func (w *world) backup(vm string, seeds []uint64, restart bool) {
	machine := fmt.Sprintf("backup of %s %d", vm, w.n+1) // the client's name
	w.start("backup of "+vm, func(ctx context.Context, objects object.Store) error {
		r, err := repo.Open(ctx, objects, repo.Options{Secret: repotest.Secret()})
		if err != nil {
			return err
		}
		if err := r.LoadIndex(ctx); err != nil {
			return err
		}
		all, _, err := r.Snapshots(ctx)
		if err != nil {
			return err
		}
		var roots []chunk.ID
		for _, s := range all {
			if s.VM.UUID == vm {
				roots = []chunk.ID{chunk.ID(s.Disks[0].Root)}
			}
		}
		s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: vm, Name: vm}, DataTime: w.c.Now(), Complete: true}
		claims, _, err := r.Claims(ctx)
		if err != nil {
			return err
		}
		o := backup.Options{Now: w.c.Now, Machine: machine, Workers: 1, Uploads: 1, Roots: roots, AdoptOrphans: true}
		return backup.WithRun(ctx, r, o, func(ctx context.Context, run *backup.Run) error {
			for _, claim := range claims {
				if restart && w.killed[claim.Machine] {
					if err := r.DropClaim(ctx, claim); err != nil {
						return err
					}
				}
			}
			m := disktest.Content(seeds...)
			return repotest.SaveIn(ctx, run, s, m.Source(), diskOptions(m, roots))
		})
	})
}

func (w *world) prune(o prune.Options) {
	o.Now, o.Wait = w.c.Now, w.c.Wait
	w.start("prune", func(ctx context.Context, objects object.Store) error {
		_, _, err := pass(ctx, objects, o)
		if errors.Is(err, prune.ErrUnreadable) && w.store.Traits().ListDelay == 0 {
			return fmt.Errorf("WRONG: %w", err)
		}
		return err
	})
}

func (w *world) forget(i int) error {
	all := []string{}
	if err := w.inner.List(w.ctx, "snapshots/", func(o object.Info) error {
		all = append(all, o.Name)
		return nil
	}); err != nil || len(all) == 0 {
		return err
	}
	w.say("forget %s", all[i%len(all)][:18])
	return w.inner.Delete(w.ctx, all[i%len(all)])
}

// end lets all clients continue to their end and checks the stored data, after all
// delays.
func (w *world) end() error {
	for len(w.clients) > 0 {
		w.step(w.clients[0], toEnd)
	}
	// The objects that a delayed run has put must mislead nobody, and are deleted.
	w.c.Add(day)
	w.backup("probe", []uint64{1, 2, 3, 4, 5}, false)
	w.step(w.clients[0], toEnd)
	for range 2 {
		w.c.Add(2 * day)
		w.prune(prune.Options{MaxRepack: 1 << 30})
		w.step(w.clients[0], toEnd)
	}
	w.c.Add(day)
	return sound(w.ctx, w.inner)
}

// stop kills the remaining clients in any case.
func (w *world) stop() {
	for len(w.clients) > 0 {
		w.kill(w.clients[0])
	}
}

// act executes one event, chosen by pick, which returns a number below n.
func (w *world) act(pick func(what string, n int) int) error {
	vm := func() string { return []string{"a", "b"}[pick("vm", 2)] }
	who := func() *client {
		if len(w.clients) == 0 {
			return nil
		}
		return w.clients[pick("who", len(w.clients))]
	}
	begin := func(c *client) {
		switch pick("begin", 4) {
		case 0: // paused before its first call
		case 1:
			w.until(c, []string{"snapshots/", "references/", "condemned/", "over/", "index/", "packs/", "claims/"}[pick("prefix", 7)])
		default:
			w.step(c, toEnd)
		}
	}
	switch what := pick("what", 14); what {
	case 0, 1, 2:
		seeds := make([]uint64, 1+pick("blocks", 3))
		for i := range seeds {
			seeds[i] = uint64(1 + pick("content", 5))
		}
		if len(w.clients) < 4 {
			w.backup(vm(), seeds, pick("restart", 2) == 0)
			begin(w.clients[len(w.clients)-1])
		}
	case 3, 4, 5:
		if len(w.clients) < 4 {
			w.prune(prune.Options{MaxRepack: int64(pick("repack", 2) << 30)})
			begin(w.clients[len(w.clients)-1])
		}
	case 6:
		return w.forget(pick("which", 10))
	case 7, 8, 9:
		w.c.Add([]time.Duration{time.Second, time.Minute, 3 * time.Minute, day / 4, day + time.Hour, 4 * day, 15 * day, 15 * day}[pick("time", 8)])
	case 10:
		if c := who(); c != nil {
			w.kill(c)
		}
	case 11:
		if c := who(); c != nil {
			w.until(c, []string{"snapshots/", "references/", "condemned/", "over/", "index/", "packs/", "claims/"}[pick("prefix", 7)])
		}
	default:
		if c := who(); c != nil {
			w.step(c, []int{1, 1, 2, 3, 5, 10, toEnd}[pick("calls", 7)])
		}
	}
	return nil
}

// No order of the steps of backups, prunes and forgets loses data that a valid
// snapshot needs, whether they are paused for any length of time, killed before any
// call, started again or continued, and with any listing delay up to the declared
// one.
func TestModel(t *testing.T) {
	delays := []time.Duration{0, 2 * time.Minute}
	if thorough() {
		delays = append(delays, time.Minute)
	} else if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("40"); err != nil {
			t.Fatal(err)
		}
	}
	for _, delay := range delays {
		t.Run(fmt.Sprint("delay ", delay), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				w, err := newWorld(t.Context(), 2*time.Minute, delay)
				if err != nil {
					rt.Fatal(err)
				}
				defer w.stop()
				steps := rapid.IntRange(5, 40).Draw(rt, "steps")
				for range steps {
					if err := w.act(func(what string, n int) int { return rapid.IntRange(0, n-1).Draw(rt, what) }); err != nil {
						rt.Fatal(err)
					}
				}
				if err := w.end(); err != nil {
					rt.Fatalf("%v\n%s", err, strings.Join(w.log, "\n"))
				}
			})
		})
	}
}

// walk executes the model at random, and returns the loss at the end.
func walk(t *testing.T, seed uint64, declared, actual time.Duration) error {
	t.Helper()
	w, err := newWorld(t.Context(), declared, actual)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 40 {
		if err := w.act(func(_ string, n int) int { return rnd.IntN(n) }); err != nil {
			t.Fatal(err)
		}
	}
	return w.end()
}

// The same model finds the loss if listings are later than declared: otherwise
// TestModel would prove nothing. TestAllHeld finds the loss that would occur if
// runs that were declared dead were not ended.
func TestModelFinds(t *testing.T) {
	for seed := range uint64(2000) {
		if err := walk(t, seed, 2*time.Minute, 5*day); err != nil {
			t.Logf("walk %d: %v", seed, err)
			return
		}
	}
	t.Error("nothing was lost in 2000 walks: the model does not see losses")
}

// lateListing runs a backup that references packs that were condemned right before,
// and a prune two days later.
func lateListing(t *testing.T, declared, actual time.Duration) error {
	w, err := newWorld(t.Context(), declared, actual)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	run := func() { w.step(w.clients[0], toEnd) }
	w.backup("a", []uint64{1, 2, 3}, false)
	run()
	w.store.DelayLists(declared, actual, w.c.Now) // listings show the objects put before
	if err := w.forget(0); err != nil {
		t.Fatal(err)
	}
	w.prune(prune.Options{})
	run()
	w.c.Add(4 * day) // the backup should see the condemned list
	w.backup("b", []uint64{1, 2, 3}, false)
	run()
	w.c.Add(2 * day) // the prune should see the snapshot
	w.prune(prune.Options{})
	run()
	w.c.Add(100 * day)
	return sound(w.ctx, w.inner)
}

// Listings that are later than declared do lose data: otherwise the tests above
// would prove nothing.
func TestDelayBeyondBound(t *testing.T) {
	if err := lateListing(t, 2*time.Minute, 2*time.Minute); err != nil {
		t.Errorf("within the bound: %v", err)
	}
	if err := lateListing(t, 2*time.Minute, 5*day); err == nil {
		t.Error("beyond the bound nothing was lost: the model does not see losses")
	}
}

// A run that is paused before it publishes, until it was retired and the packs that
// it references were deleted, publishes nothing, wherever it was paused.
func TestRetired(t *testing.T) {
	withdrawn := 0
	for hold := 1; ; hold++ {
		w, err := newWorld(t.Context(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.backup("a", []uint64{1, 2, 3}, false)
		w.step(w.clients[0], toEnd)
		var got error
		w.start("backup of b", func(ctx context.Context, objects object.Store) error {
			r, err := repotest.TryOpen(ctx, objects, repo.Options{})
			if err == nil {
				_, err = save(ctx, r, w.c, disktest.Content(1, 2, 4), "b")
			}
			got = err
			return err
		})
		w.step(w.clients[0], hold)
		if len(w.clients) == 0 {
			break
		}
		held := w.clients[0]
		if err := w.forget(0); err != nil {
			t.Fatal(err)
		}
		for range 6 {
			w.c.Add(prune.DeadAfter)
			w.prune(prune.Options{})
			w.step(w.clients[1], toEnd)
		}
		w.step(held, toEnd)
		if errors.Is(got, backup.ErrRetired) {
			withdrawn++
		}
		if err := w.end(); err != nil {
			t.Fatalf("held up before call %d: %v\n%s", hold, err, strings.Join(w.log, "\n"))
		}
		w.stop()
	}
	if withdrawn < 5 {
		t.Errorf("only %d runs found themselves retired", withdrawn)
	}
}
