package job_test

import (
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/xapi/xapisim"
)

// findingOf returns the finding of doctor about an object, or nil.
func (w *world) findingOf(what string) *job.Finding {
	w.t.Helper()
	findings, err := job.DoctorPool(w.t.Context(), w.pool)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range findings {
		if findings[i].What == what {
			return &findings[i]
		}
	}
	return nil
}

// An SR that no host has plugged is one finding of doctor, which examines the rest of
// the pool all the same.
func TestDoctorUnplugged(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs, VMs: []xapisim.VMConfig{{Name: "web", SR: "one", Halted: true, Disks: []string{image(t, t.TempDir()+"/a.img", 4*mib, 1, 4)}}}})
	sr, err := w.pool.FindSR(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	for _, pbd := range sr.PBDs {
		w.must(nil, "PBD.unplug", pbd)
	}
	if f := w.findingOf("SR one"); f == nil || f.Level != job.Fail || !strings.Contains(f.Text, "no live host reaches it") || f.Hint == "" {
		t.Errorf("%+v", f)
	}
	if f := w.findingOf("SR two"); f == nil || f.Level == job.Fail {
		t.Errorf("%+v", f)
	}
	if f := w.findingOf("NBD"); f == nil {
		t.Error("what comes after the SRs is missing")
	}
}
