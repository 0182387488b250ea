package vmplan

import (
	"slices"
	"strings"
	"testing"

	"xenkeep/xapi"
)

// The vendor's warnings about quiesced snapshots depend on the disks and on the guest.
func TestQuiesceWarnings(t *testing.T) {
	plan := func(os string, srs ...string) *Plan {
		p := &Plan{os: map[string]string{"name": os}}
		for _, sr := range srs {
			p.Disks = append(p.Disks, &DiskPlan{SR: xapi.SR{Object: xapi.Object{Ref: xapi.Ref(sr)}}})
		}
		return p
	}
	const many, spread, dynamic = "may not be done within the 10 s", "; spread them over several SRs", "dynamic disks of Windows cannot be quiesced"
	for _, c := range []struct {
		plan *Plan
		want []string
		not  string
	}{
		{plan("Debian GNU/Linux 12", "a", "a"), nil, ""},
		{plan("", "a", "b"), nil, ""},
		{plan("", "a", "a", "a"), []string{"it has 3 disks: ", many, spread}, ""},
		{plan("", "a", "b", "a", "b"), []string{"it has 4 disks: ", many}, spread},
		{plan("Microsoft Windows 8.1 Pro|C:\\Windows|\\Device\\Harddisk0\\Partition2", "a"), []string{"quiesced snapshots of Microsoft Windows 8.1 Pro are not supported", dynamic}, "Harddisk0"},
		{plan("Microsoft Windows 8 Enterprise|C:\\Windows", "a"), []string{"Windows 8 Enterprise are not supported"}, ""},
		{plan("Microsoft Windows 7 Professional |C:\\Windows", "a"), []string{"Windows 7 Professional are not supported"}, ""},
		{plan("Microsoft Windows 2000 Server", "a"), []string{"Windows 2000 Server are not supported"}, ""},
		{plan("Microsoft Windows XP Professional", "a"), []string{"Windows XP Professional are not supported"}, ""},
		{plan("Microsoft(R) Windows(R) Server 2003, Standard Edition", "a"), []string{"Server 2003, Standard Edition are not supported"}, ""},
		{plan("Microsoft® Windows Vista™ Business", "a"), []string{"Vista™ Business are not supported"}, ""},
		{plan("Microsoft® Windows Server® 2008 Standard", "a"), []string{dynamic}, "not supported"},
		{plan("Microsoft Windows Server 2008 R2 Datacenter", "a"), []string{dynamic}, "not supported"},
		{plan("Microsoft Windows Server 2012 R2 Standard", "a"), []string{dynamic}, "not supported"},
		{plan("Microsoft Windows 10 Pro", "a"), []string{dynamic}, "not supported"},
		{plan("Microsoft Windows Server 2016", "a", "a", "b"), []string{many, dynamic}, "not supported"},
	} {
		got := strings.Join(c.plan.KindWarnings(KindQuiesced), "\n")
		if c.want == nil && got != "" || c.not != "" && strings.Contains(got, c.not) || slices.ContainsFunc(c.want, func(w string) bool { return !strings.Contains(got, w) }) {
			t.Errorf("%v: %q, want %q without %q", c.plan.os, got, c.want, c.not)
		}
		for _, k := range []Kind{KindRegular, KindCheckpoint, KindOffline} {
			if w := c.plan.KindWarnings(k); w != nil {
				t.Errorf("%s: %q", k, w)
			}
		}
	}
	// Disks that are left out are frozen, too.
	p := plan("", "a", "a")
	p.Left = []*DiskPlan{{SR: xapi.SR{Object: xapi.Object{Ref: "a"}}}}
	if w := p.KindWarnings(KindQuiesced); len(w) != 1 || !strings.Contains(w[0], "it has 3 disks") {
		t.Errorf("%q", w)
	}
	// A guest that reports only its distribution.
	p.Left, p.os = nil, map[string]string{"distro": "windows"}
	if w := p.KindWarnings(KindQuiesced); len(w) != 1 || !strings.Contains(w[0], dynamic) {
		t.Errorf("%q", w)
	}
}
