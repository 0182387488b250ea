package prune_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"xenkeep/repo/prune"
)

// schedules calls fn for all sequences of n steps around a run that is paused right
// before it publishes: p lets 15 days pass and prunes, u lets the run make one more
// call, k kills it, e lets it continue to its end, r starts its machine's next run,
// which drops the claims of runs that it knows to be dead. k and e end the run; u
// and r occur once.
func schedules(n int, fn func(string)) {
	var next func(s string)
	next = func(s string) {
		if len(s) == n {
			fn(s)
			return
		}
		over := strings.ContainsAny(s, "ke")
		for _, c := range "pukre" {
			if c != 'p' && strings.ContainsRune(s, c) || over && strings.ContainsRune("uke", c) {
				continue
			}
			next(s + string(c))
		}
	}
	next("")
}

// playHeld executes one schedule. It returns the loss among the valid snapshots,
// and the loss among the snapshots that would be valid if runs were not ended.
func playHeld(t *testing.T, order string, delay time.Duration) (counted, every error) {
	t.Helper()
	w, err := newWorld(t.Context(), delay, delay)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	last := func() *client { return w.clients[len(w.clients)-1] }
	w.backup("a", []uint64{1, 2}, false)
	w.step(last(), toEnd)
	w.c.Add(time.Hour)
	w.backup("b", []uint64{1, 3}, false)
	held := last()
	w.until(held, "snapshots/")
	alive := func() bool { return len(w.clients) > 0 && w.clients[0] == held }
	if err := w.forget(0); err != nil {
		t.Fatal(err)
	}
	for _, c := range order {
		switch {
		case c == 'p':
			w.c.Add(15 * day)
			w.prune(prune.Options{})
			w.step(last(), toEnd)
		case c == 'r':
			w.backup("c", []uint64{2, 4}, true)
			w.step(last(), toEnd)
		case !alive():
		case c == 'u':
			w.step(held, 1)
		case c == 'k':
			w.kill(held)
		case c == 'e':
			w.step(held, toEnd)
		}
	}
	w.c.Add(15 * day)
	if counted = sound(w.ctx, w.inner); counted != nil {
		counted = fmt.Errorf("%w\n%s", counted, strings.Join(w.log, "\n"))
	}
	return counted, sound(w.ctx, endless{w.inner})
}

// In no schedule of a run that is paused within the request that publishes its
// snapshot, until after its retirement and its end, a valid snapshot loses data.
// The same search finds the loss if runs are not ended. If it did not, the test
// would prove nothing.
func TestAllHeld(t *testing.T) {
	n, delays := 6, []time.Duration{0}
	if thorough() {
		n, delays = 8, []time.Duration{0, 2 * time.Minute}
	}
	for _, delay := range delays {
		var holes []string
		played := 0
		schedules(n, func(order string) {
			played++
			if !thorough() && strings.Count(order, "p") < n-2 {
				return // too few prunes to end a run and free the packs that it references
			}
			counted, every := playHeld(t, order, delay)
			if counted != nil {
				t.Errorf("%s: %v", order, counted)
			}
			if every != nil {
				holes = append(holes, order)
			}
		})
		t.Logf("delay %s: %d schedules; were runs not ended, a hole in %d, as in %v", delay, played, len(holes), holes[:min(len(holes), 10)])
		if len(holes) == 0 {
			t.Error("no hole where runs are not ended: the search does not reach what it is for")
		}
	}
}
