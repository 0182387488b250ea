package restore

import (
	"reflect"
	"testing"
)

// Row "SR and network names with commas or =" of the fault list: every name can be
// specified.
func TestParseTarget(t *testing.T) {
	disks := func(sr string, list ...string) Target {
		m := make(map[string]string)
		for i := 0; i < len(list); i += 2 {
			m[list[i]] = list[i+1]
		}
		return Target{SR: sr, Disks: m}
	}
	for text, want := range map[string]Target{
		"":                             {},
		"Local storage":                {SR: "Local storage"},
		"SSD, fast":                    {SR: "SSD, fast"},
		`"tier=1"`:                     {SR: "tier=1"},
		`"a, b"`:                       {SR: "a, b"},
		"xvda=ssd,xvdb=bulk":           disks("", "xvda", "ssd", "xvdb", "bulk"),
		"xvda=ssd,rest":                disks("rest", "xvda", "ssd"),
		"xvda=tier=1,xvdb=bulk":        disks("", "xvda", "tier=1", "xvdb", "bulk"),
		`xvda="SSD, fast",xvdb=bulk`:   disks("", "xvda", "SSD, fast", "xvdb", "bulk"),
		`xvda="tier=1, ""new""",other`: disks("other", "xvda", `tier=1, "new"`),
		`"tier=1",xvda=ssd`:            disks("tier=1", "xvda", "ssd"),
	} {
		got, err := ParseTarget(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"xvda=", "=ssd", "xvda=a,xvda=b", "a=b,", `"open`, `"a"b`, "xvda=a,b,c", `xvda="a"b`} {
		if got, err := ParseTarget(text); err == nil {
			t.Errorf("%s: taken as %+v", text, got)
		}
	}
}

func TestParsePair(t *testing.T) {
	for text, want := range map[string]Pair{
		"LAN=Lab":                   {"LAN", "Lab"},
		"LAN, old=Lab, new":         {"LAN, old", "Lab, new"},
		`"vlan=7"=Lab`:              {"vlan=7", "Lab"},
		"LAN=vlan=7":                {"LAN", "vlan=7"},
		`"vlan=7"="vlan=8 ""new"""`: {"vlan=7", `vlan=8 "new"`},
	} {
		if got, err := ParsePair(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "LAN", "LAN=", "=Lab", `"LAN=Lab`, `""=Lab`} {
		if got, err := ParsePair(text); err == nil {
			t.Errorf("%s: taken as %+v", text, got)
		}
	}
}
