package xapisim

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func (c *client) hasDrivers(vm string) bool {
	rec := c.record("VM", vm)
	gm, err := c.call("VM_guest_metrics.get_record", rec["guest_metrics"])
	return err == nil && gm.(map[string]any)["PV_drivers_detected"] == true
}

func TestGuestBootsFromRightBytes(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.VMs[0].Halted = true })
	vm := c.vm()
	image := filepath.Join(t.TempDir(), "image")
	want := append(pattern(1, 8*mib), 0) // wrong: one byte longer than the disk
	for _, boots := range []bool{false, true} {
		if boots {
			want = want[:8*mib]
		}
		if err := os.WriteFile(image, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.p.Guest(GuestScript{Name: "we*", Disks: []string{image}, Delay: time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		c.must("VM.start", vm, false, false)
		if boots {
			eventually(t, "the guest boots", func() bool { return c.hasDrivers(vm) })
		}
		c.must("VM.hard_shutdown", vm)
	}
	for what, g := range map[string]GuestScript{
		"another byte":       {Name: "web", Disks: []string{"", image}},
		"a missing disk":     {Name: "web", Disks: []string{"", "", image}},
		"a missing image":    {Name: "web", Disks: []string{image + "x"}},
		"a guest that waits": {Name: "web", Disks: []string{image}, Delay: time.Hour},
		"never":              {Name: "web", Behaviour: GuestNever},
	} {
		if err := c.p.Guest(g); err != nil {
			t.Fatal(err)
		}
		c.must("VM.start", vm, false, false)
		if g.Delay == 0 && c.p.disksAre(vm, g.Disks) && g.Behaviour != GuestNever {
			t.Errorf("%s: it boots", what)
		}
		if c.hasDrivers(vm) {
			t.Errorf("%s: drivers at once", what)
		}
		c.must("VM.hard_shutdown", vm)
	}
}

func TestGuestCrashes(t *testing.T) {
	c := start(t, func(cfg *Config) {
		cfg.Guests = []GuestScript{{Name: "web", Behaviour: GuestCrashes, Delay: time.Millisecond}}
	})
	eventually(t, "the VM is halted", func() bool { return c.record("VM", c.vm())["power_state"] == "Halted" })
	for _, g := range []GuestScript{{Name: "["}, {Name: "x", Behaviour: "dance"}} {
		if err := c.p.Guest(g); err == nil {
			t.Errorf("script %+v is accepted", g)
		}
	}
}
