package disktest

import (
	"bytes"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Limits of one execution of a parser of bytes from a guest, a storage or a pool.
const (
	maxMemory = 256 << 20 // bytes of memory beyond those in use before
	maxCPU    = 20 * time.Second
)

// Moves returns how many damaged inputs a test tries: the number in the variable
// XENKEEP_FUZZ_MOVES, or few.
func Moves(few int) int {
	if n, err := strconv.Atoi(os.Getenv("XENKEEP_FUZZ_MOVES")); err == nil && n > 0 {
		return n
	}
	return few
}

// Meter measures executions of a parser.
type Meter struct {
	tb   testing.TB
	base uint64
	runs int
	end  time.Time // of a long run; zero: none
}

// NewMeter returns a Meter for executions that follow. At the end of the test it
// logs their number. A long run (XENKEEP_FUZZ_MOVES) keeps the garbage collector
// close to the limit, and ends after the time in XENKEEP_FUZZ_TIME.
func NewMeter(tb testing.TB) *Meter {
	runtime.GC()
	debug.FreeOSMemory()
	m := &Meter{tb: tb, base: mapped()}
	if d, err := time.ParseDuration(os.Getenv("XENKEEP_FUZZ_TIME")); err == nil {
		m.end = time.Now().Add(d)
	}
	old := debug.SetMemoryLimit(int64(m.base) + maxMemory/2)
	tb.Cleanup(func() {
		debug.SetMemoryLimit(old)
		tb.Logf("%s: %d executions", tb.Name(), m.runs)
	})
	return m
}

// Over reports whether the time of a long run is over.
func (m *Meter) Over() bool { return !m.end.IsZero() && time.Now().After(m.end) }

// Run calls fn, and fails the test if it uses more memory or CPU time than one
// execution may use. Memory that the runtime has obtained is returned to the
// system so slowly that its amount after fn is close to the peak.
func (m *Meter) Run(fn func()) {
	m.tb.Helper()
	before := cpu()
	fn()
	m.runs++
	if used := cpu() - before; used > maxCPU {
		m.tb.Errorf("execution %d uses %v of CPU time", m.runs, used)
	}
	if n := mapped(); n > m.base+maxMemory {
		m.tb.Errorf("execution %d uses %d MiB of memory", m.runs, (n-m.base)>>20)
	}
}

// mapped returns the number of bytes that the runtime has obtained from the
// system and not returned.
func mapped() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}

func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Damage returns a copy of p with one to four changes: bits are flipped, fields
// set to their maximum or to zero, bytes copied from another place, parts removed
// or the end cut off.
func Damage(r *rand.Rand, p []byte) []byte {
	p = bytes.Clone(p)
	for range 1 + r.IntN(4) {
		if len(p) == 0 {
			return p
		}
		at := r.IntN(len(p))
		field := p[at:min(len(p), at+1<<r.IntN(4))]
		switch r.IntN(8) {
		case 0, 1:
			p[at] ^= 1 << r.IntN(8)
		case 2, 3:
			for i := range field {
				field[i] = 0xff
			}
		case 4:
			clear(field)
		case 5:
			copy(field, p[r.IntN(len(p)):])
		case 6:
			p = append(p[:at], p[min(len(p), at+1+r.IntN(600)):]...)
		default:
			if r.IntN(8) == 0 {
				p = p[:at]
			}
		}
	}
	return p
}

// TryDamaged calls try with damaged copies of one of these inputs after another,
// as often as Moves(few) says, each time within the limits of a Meter.
func TryDamaged(tb testing.TB, few int, try func(p []byte), inputs ...[]byte) {
	tb.Helper()
	m := NewMeter(tb)
	r := rand.New(rand.NewPCG(uint64(len(inputs[0])), 7))
	for i := range Moves(few) {
		bad := Damage(r, inputs[i%len(inputs)])
		m.Run(func() { try(bad) })
		if tb.Failed() {
			tb.Fatalf("input: %x", bad[:min(len(bad), 4096)])
		}
		if m.Over() {
			return
		}
	}
}
