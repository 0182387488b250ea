package selection

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"xenkeep/job/config"
	"xenkeep/xapi"
)

// pool returns an inventory of VMs with two disks each, named NAME-root and NAME-data.
// The prefix "t:" makes a template, "s:" a snapshot, "-" a halted VM.
func pool(names ...string) *Inventory {
	inv := &Inventory{VBDs: map[xapi.Ref]xapi.VBD{}, VDIs: map[xapi.Ref]xapi.VDI{}, SRs: map[xapi.Ref]xapi.SR{}, Hosts: map[xapi.Ref]xapi.Host{}}
	for i, h := range []string{"xen1", "xen2"} {
		ref := xapi.Ref(fmt.Sprint("host", i))
		inv.Hosts[ref] = xapi.Host{Object: xapi.Object{Ref: ref}, UUID: "h" + h, NameLabel: h}
	}
	for _, s := range []string{"fast", "slow"} {
		inv.SRs[xapi.Ref(s)] = xapi.SR{Object: xapi.Object{Ref: xapi.Ref(s)}, UUID: "s" + s, NameLabel: s}
	}
	for i, n := range names {
		vm := xapi.VM{UUID: fmt.Sprintf("uuid-%d", i), PowerState: "Running", ResidentOn: xapi.Ref(fmt.Sprint("host", i%2))}
		vm.Ref = xapi.Ref(fmt.Sprint("vm", i))
		kind, rest, ok := strings.Cut(n, ":")
		if !ok || len(kind) > 1 {
			kind, rest = "", n
		}
		vm.IsATemplate, vm.IsASnapshot = kind == "t" || kind == "s", kind == "s"
		if after, ok := strings.CutPrefix(rest, "!"); ok {
			rest, vm.PowerState, vm.ResidentOn = after, "Halted", "OpaqueRef:NULL"
		}
		rest, tag, _ := strings.Cut(rest, "#")
		if tag != "" {
			vm.Tags = []string{tag}
		}
		vm.NameLabel = rest
		for d, what := range []string{"root", "data"} {
			vbd, vdi := xapi.Ref(fmt.Sprintf("vbd%d%d", i, d)), xapi.Ref(fmt.Sprintf("vdi%d%d", i, d))
			sr := xapi.Ref("fast")
			if d == 1 && i%3 == 0 {
				sr = "slow"
			}
			inv.VBDs[vbd] = xapi.VBD{Type: "Disk", VDI: vdi, UserDevice: fmt.Sprint(d), Device: fmt.Sprintf("xvd%c", 'a'+d)}
			inv.VDIs[vdi] = xapi.VDI{Object: xapi.Object{Ref: vdi}, UUID: string(vdi), NameLabel: rest + "-" + what, SR: sr}
			vm.VBDs = append(vm.VBDs, vbd)
		}
		inv.VMs = append(inv.VMs, vm)
	}
	return inv
}

func chosen(r *Result) string {
	var list []string
	for _, v := range r.VMs {
		s := v.Record.NameLabel
		if v.Keep.Last > 0 {
			s += fmt.Sprint(":", v.Keep.Last)
		}
		for _, d := range v.Disks {
			if d.Left != "" {
				s += " without " + d.Device()
			}
		}
		list = append(list, s)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func findings(r *Result) string {
	var list []string
	for _, f := range r.Findings {
		list = append(list, fmt.Sprintf("%s: %s", []string{"note", "warn", "error"}[f.Severity], f.Text))
	}
	return strings.Join(list, "\n")
}

func TestSelect(t *testing.T) {
	inv := pool("web", "db#important", "!old", "prod-1", "prod-2#xo:no-bak", "twin", "twin", "t:web", "s:snap", "t:base")
	for _, c := range []struct {
		what        string
		job         config.Job
		want, tells string
	}{
		{"names", config.Job{Select: config.Selection{Names: []string{"web", "db"}}}, "db, web", `warn: a template is called "web" too`},
		{"missing", config.Job{Select: config.Selection{Names: []string{"db", "nosuch"}}}, "db", `error: no VM is called "nosuch"`},
		{"a snapshot's name", config.Job{Select: config.Selection{Names: []string{"snap"}}}, "", `error: no VM is called "snap", only a VM snapshot`},
		{"a template's name", config.Job{Select: config.Selection{Names: []string{"base"}}}, "", `error: no VM is called "base", only a template`},
		{"two of a name", config.Job{Select: config.Selection{Names: []string{"twin"}}}, "", `error: 2 VMs are called "twin": uuid-5, uuid-6`},
		{"by UUID", config.Job{Select: config.Selection{UUIDs: []string{"UUID-5", "uuid-99"}}}, "twin", "error: no VM has the UUID uuid-99"},
		{"twice", config.Job{Select: config.Selection{Names: []string{"db"}, Patterns: []string{"d"}}}, "db", `note: chosen twice, by name "db" and by pattern "d"`},
		{"patterns", config.Job{Select: config.Selection{Patterns: []string{"prod-[0-9]$", "x"}}}, "prod-1", `error: the pattern "x" matches no VM`},
		{"marks ignored", config.Job{Select: config.Selection{Patterns: []string{"prod"}}, Exclude: config.Exclusion{IgnoreMarks: true}}, "prod-1, prod-2", ""},
		{"tags", config.Job{Select: config.Selection{Tags: []string{"important", "none"}}}, "db", `error: no VM has the tag "none"`},
		{"all", config.Job{Select: config.Selection{All: true}}, "db, old, prod-1, twin, twin, web", `warn: 2 VMs are called "twin"`},
		{"power", config.Job{Select: config.Selection{PowerState: []string{"halted"}}}, "old", ""},
		{"host", config.Job{Select: config.Selection{Hosts: []string{"xen2", "xen9"}}}, "db, prod-1, twin", `error: select.hosts: the pool has no "xen9"`},
		{"SR", config.Job{Select: config.Selection{SRs: []string{"slow"}}}, "prod-1, twin, web", ""},
		{"excludes", config.Job{Select: config.Selection{All: true}, Exclude: config.Exclusion{
			Names: []string{"web", "nosuch"}, UUIDs: []string{"uuid-5"}, Patterns: []string{"prod", "zz"}, Tags: []string{"important"}, PowerState: []string{"halted"},
		}}, "twin", "error: exclude.names: no VM is called \"nosuch\"\nnote: exclude.patterns: \"zz\" matches no VM"},
		{"excluded places", config.Job{Select: config.Selection{All: true}, Exclude: config.Exclusion{Hosts: []string{"xen1"}, SRs: []string{"sslow"}}}, "db, old, twin", ""},
		{"disks", config.Job{Select: config.Selection{Names: []string{"web", "db"}}, Exclude: config.Exclusion{
			Disks: []string{"web:xvdb", "nosuch:xvda"}, DiskPatterns: []string{"db-r"},
		}}, "db without xvda, web without xvdb", `error: exclude.disks: no disk is "nosuch:xvda"`},
		{"all disks", config.Job{Select: config.Selection{Names: []string{"db"}}, Exclude: config.Exclusion{Disks: []string{"db-root", "vdi11"}}}, "", "warn: all disks of it are left out"},
		{"rules", config.Job{Select: config.Selection{Names: []string{"web", "db"}}, Keep: config.Keep{Last: 9}, Rules: []config.Rule{
			{Patterns: []string{".*"}, Keep: &config.Keep{Last: 5}, Disks: "first"}, {Tags: []string{"important"}, Disks: "all"}, {Names: []string{"web"}, Keep: &config.Keep{Last: 2}},
		}}, "db:5, web:2 without xvdb", ""},
	} {
		r, err := Choose(inv, &c.job)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got := chosen(r); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
		if tells := findings(r); !strings.Contains(tells, c.tells) || c.tells == "" && tells != "" && c.what != "patterns" && c.what != "host" && c.what != "SR" && !strings.HasPrefix(tells, "warn") {
			t.Errorf("%s: reports %q, want %q", c.what, tells, c.tells)
		}
	}
	for ref, v := range inv.VDIs {
		if v.NameLabel == "web-data" {
			v.NameLabel = "[NOBAK] scratch"
			inv.VDIs[ref] = v
		}
		if v.NameLabel == "db-data" {
			v.Tags = []string{"xo:no-bak"}
			inv.VDIs[ref] = v
		}
	}
	if r, err := Choose(inv, &config.Job{Select: config.Selection{Names: []string{"web", "db"}}}); err != nil || chosen(r) != "db without xvdb, web without xvdb" {
		t.Errorf("marked disks: %v %v", chosen(r), err)
	}
}

func TestAsVmBackup(t *testing.T) {
	readme := []string{"PROD-ubuntu14", "PROD-ubuntu12-benchmark", "PROD-CentOS7-large-user-disks", "DEV-RH6", "DEV-RH7", "PROD-WinSvr", "DEV mySql"}
	for _, c := range []struct {
		what, cfg, want, tells string
		names                  []string
	}{
		// The errors in the README are older than its patterns: with a dot, a name is
		// a pattern, which matches.
		{"README, as written", "max_backups=4\nbackup_dir=/snapshots/BACKUPS\n#\nvdi-export=PROD-CentOS7.large-user-disks\nvm-export=PROD.*\nvm-export=DEV-RH.*:3\nexclude=PROD-ubuntu12.benchmark\n",
			"DEV-RH6:3, DEV-RH7:3, PROD-CentOS7-large-user-disks:4 without xvdb, PROD-WinSvr:4, PROD-ubuntu14:4", "note: vdi-export wins", readme},
		{"README, with errors", "max_backups=4\n#\nvdi-export=PROD-CentOS7.large-user-disk$\nvm-export=PROD.*\nvm-export=DEV-RH.*:3\nexclude=PROD-ubuntu12.bench$\n",
			"DEV-RH6:3, DEV-RH7:3, PROD-CentOS7-large-user-disks:4, PROD-WinSvr:4, PROD-ubuntu12-benchmark:4, PROD-ubuntu14:4",
			"error: line 6: exclude=PROD-ubuntu12.bench$: no VM is meant\nerror: line 3: vdi-export=PROD-CentOS7.large-user-disk$: no VM is meant", readme},
		{"README, resolved", "max_backups=4\n#\nvdi-export=PROD-CentOS7-large-user-disks\nvm-export=PROD.*\nvm-export=DEV-RH.*:3\nexclude=PROD-ubuntu12-benchmark\n",
			"DEV-RH6:3, DEV-RH7:3, PROD-CentOS7-large-user-disks:4 without xvdb, PROD-WinSvr:4, PROD-ubuntu14:4", "note: vdi-export wins over line 4, vm-export=PROD.*", readme},
		{"a missing name", "vm-export=DEV-mySql", "", `error: line 1: vm-export=DEV-mySql: no VM is called "DEV-mySql"`, readme},
		{"a name with a space", "vm-export=DEV mySql", "DEV mySql:4", "", readme},
		{"simple before patterns", "vm-export=a:2\nvm-export=.*:7", "a:2, b:7", "", []string{"a", "b"}},
		{"last wins", "vm-export=a:2\nvm-export=a:5\nvm-export=b.*:3\nvm-export=[b]:4", "a:5, b:4", "", []string{"a", "b"}},
		{"last without a number", "max_backups=9\nvm-export=a:2\nvm-export=a", "a:9", "", []string{"a"}},
		{"vdi wins", "vm-export=a:2\nvdi-export=.*\nvm-export=b:3", "a:4 without xvdb, b:4 without xvdb", "note: vdi-export wins", []string{"a", "b"}},
		{"excludes win", "vm-export=a\nvm-export=b\nexclude=[a]", "b:4", "", []string{"a", "b"}},
		{"all", "vm-export=", "a:4, b:4", "", []string{"a", "b"}},
		{"doubles", "vm-export=a", "", `2 VMs are called "a"`, []string{"a", "a"}},
		{"a template", "vm-export=a", "", `no VM is called "a", only a template`, []string{"t:a"}},
		{"case counts", "vm-export=A", "", "no VM is called", []string{"a"}},
	} {
		v, err := config.ParseVmBackup("x.cfg", []byte(c.cfg), config.VmBackupParams{})
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		r, err := Choose(pool(c.names...), v.Job())
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got := chosen(r); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
		if tells := findings(r); !strings.Contains(tells, c.tells) || c.tells == "" && tells != "" {
			t.Errorf("%s: reports %q, want %q", c.what, tells, c.tells)
		}
		// The TOML that import writes selects the same VMs.
		cfg, err := config.Parse("imported", v.TOML())
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		same, err := Choose(pool(c.names...), cfg.Jobs["x"])
		if err != nil || chosen(same) != c.want {
			t.Errorf("%s: imported: %s, want %s (%v)", c.what, chosen(same), c.want, err)
		}
	}
}

// Row N3 of the fault list: if two VMs have one name, for example after a restore, a
// job continues with the one that it has backed up before, and warns.
func TestSavedBefore(t *testing.T) {
	for what, c := range map[string]struct {
		saved map[string][]string
		want  string
		says  string
	}{
		"never":       {nil, "", "error: 2 VMs are called"},
		"one":         {map[string][]string{"nightly": {"uuid-1", "uuid-9"}}, "uuid-1", "warn: 2 VMs are called"},
		"both":        {map[string][]string{"nightly": {"uuid-0", "uuid-1"}}, "", "error: 2 VMs are called"},
		"another job": {map[string][]string{"weekly": {"uuid-1"}}, "", "error: 2 VMs are called"},
	} {
		inv := pool("web", "web", "db")
		inv.Saved = c.saved
		j := &config.Job{Name: "nightly"}
		j.Select.Names = []string{"web"}
		r, err := Choose(inv, j)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, v := range r.VMs {
			got += v.Record.UUID
		}
		if got != c.want || !strings.Contains(findings(r), c.says) {
			t.Errorf("%s: %q, want %q; %s", what, got, c.want, findings(r))
		}
		if c.want != "" && !strings.Contains(findings(r), "the one with the UUID uuid-1 is backed up") {
			t.Errorf("%s: %s", what, findings(r))
		}
	}
}
