package doctor_test

import (
	"strings"
	"testing"

	"xenkeep/job/doctor"
	"xenkeep/job/jobtest"
	"xenkeep/xapi/xapisim"
)

// An SR to which no host is attached is one finding of doctor, which examines the rest
// of the pool nevertheless.
func TestDoctorUnplugged(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, VMs: []xapisim.VMConfig{{Name: "web", SR: "one", Halted: true, Disks: []string{jobtest.Image(t, t.TempDir()+"/a.img", 4*jobtest.MiB, 1, 4)}}}})
	sr, err := w.Pool.FindSR(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	for _, pbd := range sr.PBDs {
		w.Must(nil, "PBD.unplug", pbd)
	}
	if f := w.FindingOf("SR one"); f == nil || f.Level != doctor.Fail || !strings.Contains(f.Text, "no live host reaches it") || f.Hint == "" {
		t.Errorf("%+v", f)
	}
	if f := w.FindingOf("SR two"); f == nil || f.Level == doctor.Fail {
		t.Errorf("%+v", f)
	}
	if f := w.FindingOf("NBD"); f == nil {
		t.Error("the findings after the SRs are missing")
	}
}
