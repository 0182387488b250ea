package chunkstore

import (
	"math/rand/v2"
	"testing"
	"time"

	"xenkeep/chunkstore/seal"
	"xenkeep/internal/cpu"
)

// pipeline is a model of a backup: a source, workers and a storage of limited rates.
// Rates are in MB/s of plain data, except for the storage's.
type pipeline struct {
	source, storage float64
	workers         float64
	other           float64 // seconds of a worker for each MB, without compression
	// shared is the share of the source's rate that is lost if the workers use all
	// processors: the source runs on the same ones.
	shared float64
	noise  float64 // of the source's rate
}

// Seconds of a worker for each MB, and bytes stored for each byte, by level.
var (
	modelCost  = map[seal.Level]float64{seal.LevelFastest: 1 / 500.0, seal.LevelDefault: 1 / 240.0, seal.LevelBetter: 1 / 110.0}
	modelRatio = map[seal.Level]float64{seal.LevelFastest: 0.48, seal.LevelDefault: 0.465, seal.LevelBetter: 0.455}
)

// unknown are the times of a machine that does not report them.
func unknown() cpu.Times { return cpu.Times{} }

// run runs the model for some minutes. It returns the time at each level, and how
// often the level changed.
func (p pipeline) run(t *testing.T, a *adapt, minutes int) (at map[seal.Level]time.Duration, changes int) {
	t.Helper()
	at = make(map[seal.Level]time.Duration)
	r := rand.New(rand.NewPCG(1, 2))
	const tick = 100 * time.Millisecond
	for range minutes * 600 {
		l := a.current()
		each := p.other + modelCost[l]
		cpu := p.workers / each
		source := p.source * (1 + p.noise*(2*r.Float64()-1))
		source *= 1 - p.shared*min(1, source/cpu)
		storage := p.storage / modelRatio[l]
		rate := min(source, cpu, storage)
		work := rate * each / p.workers
		total := time.Duration(p.workers * float64(tick))
		slack := time.Duration((1 - work) * float64(total))
		s := workTime{
			total: total, compress: time.Duration(rate * modelCost[l] * float64(tick)),
			encoded: int64(rate * 1e6 * tick.Seconds()), seen: int64(rate * 1e6 * tick.Seconds()),
		}
		if source <= storage {
			s.idle = slack
		} else {
			s.storage = slack
		}
		a.observe(s)
		at[l] += tick
		if a.current() != l {
			changes++
		}
	}
	return at, changes
}

// The level follows the side that waits, and stays once it is found.
func TestAdapt(t *testing.T) {
	fast := pipeline{source: 2000, storage: 2000, workers: 2, other: 1 / 900.0}
	with := func(change func(p *pipeline)) pipeline {
		p := fast
		change(&p)
		return p
	}
	for name, c := range map[string]struct {
		p      pipeline
		want   seal.Level
		reason string
		most   int // changes of the level in ten minutes
	}{
		"fast pool and storage": {fast, seal.LevelFastest, ReasonCPU, 1},
		"pool of 1 Gbit/s":      {with(func(p *pipeline) { p.source = 110 }), seal.LevelBetter, ReasonSource, 1},
		"pool of 2 Gbit/s":      {with(func(p *pipeline) { p.source = 225 }), seal.LevelDefault, ReasonBegin, 0},
		"storage of 20 MB/s":    {with(func(p *pipeline) { p.storage = 20 }), seal.LevelBetter, ReasonStorage, 1},
		"one slow core":         {with(func(p *pipeline) { p.workers, p.source, p.other = 0.5, 150, 1/300.0 }), seal.LevelFastest, ReasonCPU, 1},
		"uneven pool":           {with(func(p *pipeline) { p.source, p.noise = 110, 0.5 }), seal.LevelBetter, ReasonSource, 12},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAdapt(seal.LevelAuto, unknown)
			at, changes := c.p.run(t, a, 10)
			if changes > c.most {
				t.Errorf("the level changed %d times: %v", changes, at)
			}
			if got := at[c.want]; got < 7*time.Minute {
				t.Errorf("only %v of 10 min at %v: %v", got, c.want, at)
			}
			if got := a.reason[c.want]; got != c.reason {
				t.Errorf("reason %q, want %q", got, c.reason)
			}
		})
	}
}

// A higher level that makes the source slower, because it runs on the same
// processors, is given up, and is tried more and more rarely.
func TestAdaptSharedProcessors(t *testing.T) {
	a := newAdapt(seal.LevelAuto, unknown)
	p := pipeline{source: 250, storage: 2000, workers: 2, other: 1 / 900.0, shared: 0.6}
	at, changes := p.run(t, a, 10)
	if changes == 0 {
		t.Fatal("no higher level was tried: the model does not show what it should")
	}
	if changes > 14 || at[seal.LevelDefault] < 9*time.Minute {
		t.Errorf("%d changes, %v", changes, at)
	}
}

// If all processors of the machine are busy, the level is lowered although the
// workers wait, and it is not raised. It stays where the workers have little to do.
func TestAdaptBusyMachine(t *testing.T) {
	for name, c := range map[string]struct {
		source float64
		want   seal.Level
	}{"workers that do most of the work": {300, seal.LevelFastest}, "workers that wait": {60, seal.LevelDefault}} {
		t.Run(name, func(t *testing.T) {
			var now cpu.Times
			a := newAdapt(seal.LevelAuto, func() cpu.Times {
				now.Total += time.Hour // more than a second of each processor
				return now
			})
			p := pipeline{source: c.source, storage: 2000, workers: 2, other: 1 / 900.0}
			if at, changes := p.run(t, a, 10); at[c.want] < 9*time.Minute || changes > 1 {
				t.Errorf("%d changes, %v", changes, at)
			}
		})
	}
}

// The level falls as soon as the CPU becomes the bottleneck.
func TestAdaptFalls(t *testing.T) {
	a := newAdapt(seal.LevelAuto, unknown)
	p := pipeline{source: 110, storage: 2000, workers: 2, other: 1 / 900.0}
	p.run(t, a, 1)
	if a.current() != seal.LevelBetter {
		t.Fatalf("level %v", a.current())
	}
	p.source = 2000
	if at, _ := p.run(t, a, 1); at[seal.LevelBetter] > 3*time.Second || a.current() != seal.LevelFastest {
		t.Errorf("%v", at)
	}
	if a.reason[seal.LevelFastest] != ReasonCPU {
		t.Errorf("reason %q", a.reason[seal.LevelFastest])
	}
}

// A level that the user chose does not change.
func TestAdaptFixed(t *testing.T) {
	a := newAdapt(seal.LevelDefault, unknown)
	p := pipeline{source: 10, storage: 2000, workers: 2, other: 1 / 900.0}
	if _, changes := p.run(t, a, 5); changes > 0 || a.current() != seal.LevelDefault || a.reason[seal.LevelDefault] != ReasonChosen {
		t.Errorf("%d changes, level %v", changes, a.current())
	}
}
