package prune_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"xenkeep/repo/prune"
)

// thorough reports whether the exhaustive tests leave nothing out: with
// XENKEEP_TEST_THOROUGH=1 they take half an hour on two busy cores and need
// -timeout 60m.
func thorough() bool { return os.Getenv("XENKEEP_TEST_THOROUGH") != "" }

// orders calls fn for all sequences of n whole operations: f forgets the oldest
// snapshot, p prunes, b backs up a disk that shares content with it, t lets four
// days pass. Sequences that repeat an operation without effect are left out.
func orders(n int, fn func(string)) {
	var next func(s string)
	next = func(s string) {
		if len(s) == n {
			fn(s)
			return
		}
		for _, c := range "fpbt" {
			last := byte(0)
			if len(s) > 0 {
				last = s[len(s)-1]
			}
			switch {
			case byte(c) == last: // nothing has happened since
			case c == 'b' && strings.Contains(s, "b"):
			case c == 'f' && strings.Contains(s, "f"):
			default:
				next(s + string(c))
			}
		}
	}
	next("")
}

// play executes one sequence, and checks that the snapshots published at the end
// are complete.
func play(t *testing.T, order string, declared, actual time.Duration) error {
	t.Helper()
	w, err := newWorld(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	run := func() { w.step(w.clients[0], toEnd) }
	w.backup("a", []uint64{1, 2}, false)
	run()
	w.store.DelayLists(declared, actual, w.c.Now) // listings show the existing objects
	for _, c := range order {
		switch c {
		case 'f':
			if err := w.forget(0); err != nil {
				t.Fatal(err)
			}
		case 'p':
			w.prune(prune.Options{})
			run()
		case 'b':
			w.backup("b", []uint64{1, 2, 3}, false)
			run()
		case 't':
			w.c.Add(4 * day)
		}
	}
	w.c.Add(100 * day)
	return sound(w.ctx, w.inner)
}

// No sequence of whole operations loses data while listings are delayed by no more
// than the declared bound; beyond it this same search finds the loss. If it did
// not, the test would prove nothing.
func TestAllOrders(t *testing.T) {
	n := 6
	if thorough() {
		n = 8
	}
	for _, c := range []struct {
		name             string
		declared, actual time.Duration
		loses            bool
	}{
		{"at once", 0, 0, false},
		{"within the bound", 2 * time.Minute, 2 * time.Minute, false},
		{"beyond the bound", 2 * time.Minute, 5 * day, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var lost []string
			all := 0
			orders(n, func(order string) {
				if c.loses && len(lost) > 2 {
					return
				}
				all++
				if err := play(t, order, c.declared, c.actual); err != nil {
					lost = append(lost, fmt.Sprintf("%s: %v", order, err))
				}
			})
			t.Logf("%d orders, lost in: %v", all, lost)
			if (len(lost) > 0) != c.loses {
				t.Errorf("of %d orders these lost something: %v", all, lost)
			}
		})
	}
}

// A backup is paused before each of its calls, while a prune is paused before each
// of its own; either may be killed there instead of continuing. Then a prune
// deletes the condemned packs.
func TestAllInterleavings(t *testing.T) {
	stride := 7
	if thorough() {
		stride = 1
	}
	played := 0
	for i := 0; ; i++ { // calls of the backup before the prune begins
		ended := false
		for j := i % stride; ; j += stride { // calls of the prune before the backup continues
			for _, killed := range []string{"", "backup", "prune"} {
				if killed != "" && !thorough() && (i+j)%3 != 0 {
					continue
				}
				over, beyond := interleave(t, i, j, killed)
				played++
				ended = ended || over
				if beyond {
					j = 1 << 20
				}
			}
			if j >= 1<<20 || ended {
				break
			}
		}
		if ended {
			break
		}
	}
	if t.Logf("%d interleavings", played); played < 100 {
		t.Errorf("only %d interleavings were played", played)
	}
}

// interleave executes one case; it reports whether the backup, or the prune, had
// ended before it was paused.
func interleave(t *testing.T, i, j int, killed string) (over, beyond bool) {
	t.Helper()
	w, err := newWorld(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	w.backup("a", []uint64{1, 2}, false)
	w.step(w.clients[0], toEnd)
	if err := w.forget(0); err != nil {
		t.Fatal(err)
	}
	w.backup("b", []uint64{1, 2, 3}, false)
	run := w.clients[0]
	alive := func(c *client) bool {
		for _, o := range w.clients {
			if o == c {
				return true
			}
		}
		return false
	}
	if i > 0 {
		w.step(run, i)
	}
	over = !alive(run)
	w.prune(prune.Options{MaxRepack: 1 << 30})
	pass := w.clients[len(w.clients)-1]
	if j > 0 && alive(pass) {
		w.step(pass, j)
	}
	beyond = !alive(pass)
	for _, c := range []struct {
		name string
		c    *client
	}{{"backup", run}, {"prune", pass}} {
		if !alive(c.c) {
			continue
		}
		if killed == c.name {
			w.kill(c.c)
		} else {
			w.step(c.c, toEnd)
		}
	}
	for range 2 {
		w.c.Add(2 * day)
		w.prune(prune.Options{MaxRepack: 1 << 30})
		w.step(w.clients[0], toEnd)
	}
	if err := sound(w.ctx, w.inner); err != nil {
		t.Fatalf("backup held up after %d calls, prune after %d, killed: %q: %v\n%s", i, j, killed, err, strings.Join(w.log, "\n"))
	}
	return over, beyond
}
