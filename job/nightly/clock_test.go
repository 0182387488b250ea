package nightly

import (
	"strings"
	"testing"
	"time"

	"xenkeep/job/doctor"
)

// Row N8 of the fault list: if the pool's clock is 25 hours ahead, doctor and the
// report warn, and the age of a snapshot is counted from the time when it was written.
func TestPoolClockAhead(t *testing.T) {
	h := newHouse(t, "[jobs.n]\nselect={all=true}\n", 1, 1, 4*mib)
	n := h.night("n")
	pool, err := n.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close(t.Context())
	clock := func() (levels []string, text string) {
		t.Helper()
		findings, err := doctor.Pool(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if strings.HasPrefix(f.What, "clock of host ") {
				levels, text = append(levels, f.Level), f.Text
			}
		}
		return levels, text
	}
	if levels, text := clock(); len(levels) == 0 || levels[0] != doctor.OK {
		t.Errorf("%v %s", levels, text)
	}
	h.sim.Advance(25 * time.Hour)
	if levels, text := clock(); len(levels) == 0 || levels[0] != doctor.Warn || !strings.HasPrefix(text, "is 25h0m") && !strings.HasPrefix(text, "is 24h59m") || !strings.HasSuffix(text, " ahead of that of this machine") {
		t.Errorf("%v %s", levels, text)
	}
	rep, err := Run(t.Context(), n)
	if err != nil || len(rep.Warnings) != 1 || !strings.HasPrefix(rep.Warnings[0], "the pool's clock is ") {
		t.Errorf("%v %q", err, rep.Warnings)
	}
	if good := rep.VMs[0].LastGood; good.Sub(h.now) > time.Hour {
		t.Errorf("the newest good snapshot is of %v, and it is %v", good, h.now)
	}
	r, err := h.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range []struct {
		later  time.Duration
		tooOld bool
	}{{time.Hour, false}, {27 * time.Hour, true}, {-2 * time.Hour, true}} {
		list, err := Coverage(t.Context(), r, pool, nil, 26*time.Hour, h.now.Add(c.later))
		if err != nil || len(list) != 1 || list[0].TooOld != c.tooOld || (time.Duration(list[0].Age*float64(time.Second))-c.later).Abs() > 10*time.Minute {
			t.Errorf("after %v: %v %+v", c.later, err, list)
		}
		// Row F5 of the fault list: a date in the future is reported.
		if c.later != time.Hour && list[0].FromFuture != (c.later < 0) {
			t.Errorf("after %v: from the future %v", c.later, list[0].FromFuture)
		}
	}
}
