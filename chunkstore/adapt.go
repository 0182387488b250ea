package chunkstore

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"xenkeep/chunkstore/seal"
	"xenkeep/internal/cpu"
)

// adapt chooses the compression level of a run with seal.LevelAuto. The workers
// report how they spend their time; from a window of these reports follows the share
// of it that is work, and the share that is compression. The rest is slack: waiting
// for the source, or for the storage.
//
//   - Nearly no slack: the CPU is the bottleneck, and the level is lowered.
//   - So much slack that the next level's additional time would fit into it, with a
//     reserve: the level is raised. Better compression then costs no wall time, and
//     saves some if the storage is the bottleneck.
//
// The source may run on the same processors as the workers, or other programs may use
// them. If all processors are busy, the CPU is the bottleneck although the workers
// wait.
//
// The two limits are far apart: a level that was raised is not lowered because of the
// time that it was expected to take. If the run gets slower nevertheless after the
// level was raised, for example because the pool runs on the same processors, the
// level is lowered again and not raised for a time that doubles with each attempt.
//
// A run begins at LevelDefault, so that small ones are stored in the usual way. The
// level never falls below LevelFastest: that level is faster than most storages,
// and data that does not compress is recognized and stored as it is on every level.
//
// adapt is safe for concurrent use.
type adapt struct {
	level atomic.Int32 // a seal.Level

	mu     sync.Mutex
	auto   bool
	sum    workTime                     // of the current window
	cost   [seal.LevelBest + 1]float64  // nanoseconds for each byte compressed; 0: not measured
	reason [seal.LevelBest + 1]string   // why the level was chosen, last
	counts [seal.LevelBest + 1]levelSum // by level
	plain  levelSum                     // stored as it is

	times  func() cpu.Times // of the machine
	lastAt cpu.Times        // when look measured last
	busy   float64          // share of the processors that was busy before that; 0: not known

	before float64 // bytes for each second of workers' time before the level was raised; 0: not raised recently
	hold   int     // windows in which the level is not raised
	next   int     // the next value of hold
}

// levelSum counts data, in bytes.
type levelSum struct{ plain, stored int64 }

// workTime is how workers spent their time.
type workTime struct {
	total    time.Duration // of all workers together
	idle     time.Duration // of that, waiting for data
	storage  time.Duration // of that, waiting for the storage
	compress time.Duration // of that, compressing
	encoded  int64         // bytes compressed, plain
	seen     int64         // bytes processed, also those that were known
}

func (s *workTime) add(o workTime) {
	s.total += o.total
	s.idle += o.idle
	s.storage += o.storage
	s.compress += o.compress
	s.encoded += o.encoded
	s.seen += o.seen
}

// work returns the share of the time that was work.
func (s *workTime) work() float64 {
	return 1 - (s.idle+s.storage).Seconds()/s.total.Seconds()
}

const (
	// adaptWindow is the workers' time, all workers together, that a decision is
	// based on.
	adaptWindow = 2 * time.Second
	// adaptFull is the share of work above which the CPU is the bottleneck.
	adaptFull = 0.95
	// adaptBusy is the share of the machine's processors above which the CPU is the
	// bottleneck, if the workers' share of work is at least adaptShare: compression
	// is not the reason otherwise.
	adaptBusy  = 0.97
	adaptShare = 0.4
	// adaptFit is the share of work that a higher level must be expected to stay
	// below.
	adaptFit = 0.80
	// adaptSlower is the share of the data rate before, below which a higher level
	// is given up.
	adaptSlower = 0.93
	// adaptHold is the number of windows for which a level that was given up is not
	// tried again; it doubles each time.
	adaptHold = 16
)

// Reasons of a level.
const (
	ReasonChosen  = "chosen"  // by the user
	ReasonBegin   = "begin"   // the first level of a run
	ReasonCPU     = "cpu"     // lowered: the CPU was the bottleneck
	ReasonSource  = "source"  // raised: the workers waited for the source
	ReasonStorage = "storage" // raised: the workers waited for the storage
)

// adaptCost is the expected cost of a level before it was measured, relative to
// LevelFastest, in the order of adaptLevels.
var adaptLevels = [...]struct {
	level seal.Level
	cost  float64
}{{seal.LevelFastest, 1}, {seal.LevelDefault, 2.2}, {seal.LevelBetter, 4.5}}

func newAdapt(l seal.Level, times func() cpu.Times) *adapt {
	a := &adapt{auto: l == seal.LevelAuto, next: adaptHold, times: times, lastAt: times()}
	reason := ReasonChosen
	if a.auto {
		l, reason = seal.LevelDefault, ReasonBegin
	}
	a.level.Store(int32(l))
	a.reason[l] = reason
	return a
}

// current returns the level for the next blob.
func (a *adapt) current() seal.Level { return seal.Level(a.level.Load()) }

// count records a blob.
func (a *adapt) count(l seal.Level, e seal.Encoding, plain, stored int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &a.plain
	if e != seal.Plain {
		c = &a.counts[l]
	}
	c.plain += int64(plain)
	c.stored += int64(stored)
}

// observe adds a worker's report, and decides if a window is complete.
func (a *adapt) observe(s workTime) {
	if !a.auto {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sum.add(s)
	if a.sum.total < adaptWindow {
		return
	}
	w := a.sum
	a.sum = workTime{}
	at := 0
	for adaptLevels[at].level != a.current() {
		at++
	}
	a.measure(at, w)
	a.look()
	if at > 0 && (w.work() >= adaptFull || a.busy >= adaptBusy && w.work() >= adaptShare) {
		a.set(at-1, ReasonCPU)
		return
	}
	a.rise(at, w)
}

// look updates the share of the processors that is busy, about once a second: their
// times are counted in hundredths of a second, which says nothing of a short time.
func (a *adapt) look() {
	now := a.times()
	if now.Total-a.lastAt.Total < time.Duration(runtime.NumCPU())*time.Second {
		return
	}
	a.busy, _ = now.Busy(a.lastAt)
	a.lastAt = now
}

// rise raises the level if the time for it is there, and lowers it again if that has
// made the run slower.
func (a *adapt) rise(at int, w workTime) {
	rate := float64(w.seen) / w.total.Seconds()
	before := a.before
	a.before = 0
	a.hold = max(a.hold-1, 0)
	if before > 0 && rate < before*adaptSlower {
		a.set(at-1, ReasonCPU)
		a.hold, a.next = a.next, 2*a.next
		return
	}
	if at+1 == len(adaptLevels) || a.hold > 0 || w.encoded == 0 {
		return
	}
	more := w.compress.Seconds() / w.total.Seconds() * (a.ratio(at) - 1)
	if w.work()+more > adaptFit || a.busy > adaptFit {
		return
	}
	reason := ReasonSource
	if w.storage > w.idle {
		reason = ReasonStorage
	}
	a.set(at+1, reason)
	a.before = rate
}

// measure updates the cost of a level from a window in which it was used.
func (a *adapt) measure(at int, w workTime) {
	const enough = 1 << 20
	if w.encoded < enough {
		return
	}
	cost := float64(w.compress.Nanoseconds()) / float64(w.encoded)
	if c := &a.cost[adaptLevels[at].level]; *c == 0 {
		*c = cost
	} else {
		*c += (cost - *c) / 4
	}
}

// ratio returns how many times the time of a level the next level is expected to
// take: at least as many as in adaptLevels, because the data of the last windows may
// have been easier than that which follows.
func (a *adapt) ratio(at int) float64 {
	ratio := adaptLevels[at+1].cost / adaptLevels[at].cost
	now, next := a.cost[adaptLevels[at].level], a.cost[adaptLevels[at+1].level]
	if now > 0 && next > 0 {
		ratio = max(ratio, next/now)
	}
	return ratio
}

func (a *adapt) set(at int, reason string) {
	l := adaptLevels[at].level
	a.level.Store(int32(l))
	a.reason[l] = reason
	a.sum, a.before = workTime{}, 0
}

// LevelStats counts the data that a run compressed at one level.
type LevelStats struct {
	Level  string `json:"level"`            // as seal.ParseLevel accepts it; "none" for data that does not compress
	Reason string `json:"reason,omitempty"` // why the level was chosen, for the last time; "" for "none"
	Plain  int64  `json:"bytes"`            // plain
	Stored int64  `json:"bytes_stored"`     // compressed
}

// stats returns the levels that were used, lowest first.
func (a *adapt) stats() []LevelStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []LevelStats
	if a.plain.plain > 0 {
		out = append(out, LevelStats{Level: "none", Plain: a.plain.plain, Stored: a.plain.stored})
	}
	for _, l := range []seal.Level{seal.LevelFastest, seal.LevelDefault, seal.LevelBetter, seal.LevelBest} {
		if c := a.counts[l]; c.plain > 0 {
			out = append(out, LevelStats{Level: l.String(), Reason: a.reason[l], Plain: c.plain, Stored: c.stored})
		}
	}
	return out
}
