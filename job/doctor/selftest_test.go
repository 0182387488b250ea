package doctor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/doctor"
	"xenkeep/job/jobtest"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// A self-test tries every transport that the pool and the SR offer, names those that
// they do not offer, and leaves the pool unchanged.
func TestSelfTest(t *testing.T) {
	for _, c := range []struct {
		sr      string
		nbd     xapisim.NBDMode
		skipped []string
	}{
		{"ext", xapisim.NBDTLS, nil},
		{"ext", xapisim.NBDOff, []string{"read over NBD", "read changed blocks over NBD"}},
		{"lvm", xapisim.NBDTLS, nil},
	} {
		t.Run(fmt.Sprint(c.sr, " ", c.nbd), func(t *testing.T) {
			w := jobtest.New(t, xapisim.Config{NBD: c.nbd, SRs: []xapisim.SRConfig{{Name: "store", Type: c.sr}}})
			before := w.Sim.Dump()
			rep, text, err := w.SelfTest("store", nil)
			if err != nil || rep.Status != "ok" || len(rep.Steps) < 13 {
				t.Fatalf("%v\n%s", err, text)
			}
			for _, s := range rep.Steps {
				skipped := false
				for _, name := range c.skipped {
					skipped = skipped || s.Name == name
				}
				if (s.State == doctor.StepSkipped) != skipped {
					t.Errorf("%s: %s (%s)", s.Name, s.State, s.Text)
				}
				if strings.Contains(s.Name, "read") && !skipped && s.Bytes == 0 {
					t.Errorf("%s transferred nothing", s.Name)
				}
			}
			w.Sim.GC()
			jobtest.SamePool(t, before, w.Sim.Dump())
		})
	}
}

// The report can be shown to others: it contains no names of hosts and SRs, no
// addresses, and no session.
func TestSelfTestHidesSecrets(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	sr := w.SR(w.Sim.Ready().SRs[0].UUID)
	w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Status: 500, Times: -1})
	rep, text, err := w.SelfTest(sr.UUID, nil)
	if !errors.Is(err, doctor.ErrSelfTest) || rep.Status != "failed" {
		t.Fatalf("%v\n%s", err, text)
	}
	p, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := w.Pool.Hosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{hosts[0].Address, hosts[0].NameLabel, sr.NameLabel, w.Sim.Password(), "OpaqueRef"} {
		if secret != "" && bytes.Contains(p, []byte(secret)) {
			t.Errorf("the report holds %q: %s", secret, p)
		}
	}
}

// If a disk reads differently than it was written, the test fails with the offset.
func TestSelfTestFindsWrongData(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{NBD: xapisim.NBDTLS})
	sr := w.Sim.Ready().SRs[0].UUID
	_, text, err := w.SelfTest(sr, func(s doctor.SelfTestStep) {
		if s.Name != "write over it in pieces" {
			return
		}
		vdis, err := w.Pool.VDIs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vdis {
			if v.NameLabel != "xenkeep self-test" || v.IsASnapshot {
				continue
			}
			err := w.Pool.ImportVDI(t.Context(), xapi.ImportOptions{VDI: v.Ref, Format: xapi.FormatRaw, Chunked: true, ContentLength: -1}, func(out io.Writer) error {
				var head [12]byte
				binary.LittleEndian.PutUint64(head[:], 6*jobtest.MiB+4096)
				binary.LittleEndian.PutUint32(head[8:], 512)
				_, err := out.Write(append(append(head[:], make([]byte, 512)...), make([]byte, 12)...))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	if !errors.Is(err, doctor.ErrSelfTest) {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, step := range []string{"read by VHD delta", "read over NBD"} {
		if !strings.Contains(text, fmt.Sprintf("failed %s: byte %d reads as 00", step, 6*jobtest.MiB+4096)) {
			t.Errorf("%s:\n%s", step, text)
		}
	}
}

// Impossible requests are refused before anything is created.
func TestSelfTestRefusals(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: []xapisim.SRConfig{{Name: "small", Type: "ext", Size: 64 * jobtest.MiB}}})
	before := w.Sim.Dump()
	for sr, want := range map[string]error{"small": job.ErrSpace, "nosuch": xapi.ErrNotFound} {
		rep, err := doctor.SelfTest(t.Context(), w.Pool, doctor.SelfTestOptions{SR: sr})
		if rep != nil || !errors.Is(err, want) || !strings.Contains(err.Error(), sr) {
			t.Errorf("%s: %v, %v", sr, rep, err)
		}
	}
	jobtest.SamePool(t, before, w.Sim.Dump())
}

// An interrupted self-test removes its objects, and reports that it was interrupted.
func TestSelfTestInterrupted(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{NBD: xapisim.NBDTLS})
	sr := w.Sim.Ready().SRs[0].UUID
	before := w.Sim.Dump()
	for _, at := range []string{"create a disk", "write by import", "take a second VDI snapshot", "read over NBD"} {
		ctx, cancel := context.WithCancel(t.Context())
		rep, err := doctor.SelfTest(ctx, w.Pool, doctor.SelfTestOptions{SR: sr, Size: 34 * jobtest.MiB, Step: func(s doctor.SelfTestStep) {
			if s.Name == at {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) || rep.Steps[len(rep.Steps)-1].Name != "remove everything" || rep.Status != doctor.StepStopped {
			t.Errorf("after %q: %v, %+v", at, err, rep)
		}
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
		cancel()
	}
}
