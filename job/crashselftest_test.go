package job_test

import (
	"testing"

	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/xapi/xapisim"
)

// selfTested is a self-test that is killed or meets errors. Another self-test, or
// cleanup of any repository, removes its leftovers.
func selfTested(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDTLS)
	sr := w.Sim.Ready().SRs[0].UUID
	before := w.Sim.Dump()
	turn := 0
	return operation{w: w, prepare: func() childTask {
		o := w.order("")
		o.SelfTest = sr
		return o
	}, after: func() {
		w.waitIdle()
		w.Reopen()
		if turn++; turn%2 == 0 {
			rep, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{})
			if err != nil || rep.Err() != nil {
				t.Fatal(err, rep.Err())
			}
		} else if rep, text, err := w.SelfTest(sr, nil); err != nil || rep.Status != "ok" {
			t.Fatalf("%v\n%s", err, text)
		}
		w.noTasks()
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
	}}
}

func TestCrashSelfTest(t *testing.T) { selfTested(t).sweep(10) }

func TestErrorsSelfTest(t *testing.T) { selfTested(t).errors(10) }
