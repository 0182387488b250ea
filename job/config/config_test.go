package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/repo/retention"
)

func TestExample(t *testing.T) {
	c, err := Parse("example.toml", Example)
	if err != nil {
		t.Fatal(err)
	}
	j, err := c.Job("nightly")
	if err != nil {
		t.Fatal(err)
	}
	if p := j.Keep.Policy(); p.Daily != 7 || p.Monthly != 12 {
		t.Errorf("policy %+v", p)
	}
	if j.Check.Budget != 20<<30 || j.Prune != Weekly {
		t.Errorf("%+v %v", j.Check, j.Prune)
	}
	// The commented lines are valid, too.
	var on []string
	for line := range strings.Lines(string(Example)) {
		for _, key := range []string{"# [", "# report-file", "# window", "# limits", "# transport", "# tags = [\"imp", "# priority", "# disks = \"first",
			"# server", "# tls =", "# user", "# password = { file = \"/etc/xenkeep/mail", "# from", "# to =", "# attempts", "# url", "# token", "# start", "# success", "# failure",
			"# before", "# vm-before", "# time-out", "# file =", "# format", "# retries", "# max-repack",
			"# type", "# schedule", "# select", "# keep = { last = 12", "# snapshot = [\"check", "# tags = [\"hour"} {
			if strings.HasPrefix(line, key) {
				line = strings.TrimPrefix(line, "# ")
				break
			}
		}
		on = append(on, line)
	}
	if c, err = Parse("x", []byte(strings.Join(on, ""))); err != nil {
		t.Fatal(err)
	}
	if h := c.Jobs["hourly"]; h == nil || h.Type != PoolSnapshot || h.Schedule == "" || h.Keep.Policy().Last != 12 {
		t.Errorf("%+v", h)
	}
	if c.Notify.Mail == nil || len(c.Notify.Mail.To) != 2 || c.Jobs["nightly"].Hooks.TimeOut != Duration(10*time.Minute) || *c.Jobs["nightly"].Rules[0].Priority != 10 {
		t.Errorf("%+v", c.Notify)
	}
	// Every existing key is in the example.
	for _, at := range [][]string{nil, {"repository"}, {"pools", "x"}, {"jobs", "x"}, {"jobs", "x", "select"}, {"jobs", "x", "exclude"}, {"jobs", "x", "rules"}, {"jobs", "x", "hooks"},
		{"jobs", "x", "window"}, {"jobs", "x", "limits"}, {"jobs", "x", "keep"}, {"jobs", "x", "check"}, {"notify", "mail"}, {"notify", "ping"}, {"log"}} {
		for _, k := range keysAt(at) {
			if !strings.Contains(string(Example), k) {
				t.Errorf("the example lacks %s.%s", strings.Join(at, "."), k)
			}
		}
	}
}

const small = "[repository]\nlocation='/r'\n[pools.p]\nurl='h'\n[jobs.j]\n%s\n[jobs.j.select]\nall=true\n"

func TestWrong(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"prunee = \"weekly\"", `x.toml:6: jobs.j.prunee: unknown key; did you mean "prune"?`},
		{"nbd_connections = 3", `did you mean "nbd-connections"?`},
		{"window = { stopafter = \"06:00\" }", `did you mean "stop-after"?`},
		{"zzzzzzzzzz = 3", "known here: allow-shrink, check,"},
		{"prune = \"weeky\"", `jobs.j.prune: "weeky" is none of`},
		{"keep = { daily = -3 }", "keep daily -3"},
		{"keep = { daily = \"some\" }", `want a number or "all"`},
		{"keep = { within = \"3x\" }", "want numbers with y, m, w, d or h"},
		{"check = { budget = \"20X\" }", `size "20X"`},
		{"snapshot = [\"quiet\"]", `"quiet" is none of`},
		{"snapshot = [\"regular\", \"regular\"]", "is listed twice"},
		{"window = { stop-after = \"25:00\" }", "want a time of day"},
		{"retries = 99", "want 0 to 10"},
		{"pool = \"other\"", `no pool "other"`},
		{"transport = 3", "jobs.j.transport"},
		{"rules = [ { disks = \"first\" } ]", "for which VMs?"},
		{"exclude = { patterns = [\"a(\"] }", "no usable regular expression"},
		{"notify = { mail = { server = \"h:25\", from = \"a@b\", to = [\"nobody\"] } }", `address "nobody"`},
		{"notify = { mail = { server = \"h:25\", from = \"a@b\", to = [\"c@d\"], user = \"u\" } }", "user and password go together"},
		{"notify = { webhook = { url = \"file:///etc\" } }", "is no address of the web"},
		{"notify = { ping = {} }", "give start, success or failure"},
		{"= 3", "x.toml:6: "},
	} {
		_, err := Parse("x.toml", []byte(strings.Replace(small, "%s", c.in, 1)))
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.in, err, c.want)
		}
	}
	if _, err := Parse("x", []byte(strings.Replace(small, "%s", "", 1))); err != nil {
		t.Error(err)
	}
	_, err := Parse("x", nil)
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("of nothing: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestValues(t *testing.T) {
	c, err := Parse("x", []byte(strings.Replace(small, "%s", "keep = { last = 3, yearly = \"all\", within = \"1y6m\" }\nmax-repack = 1000\nwindow = { stop-after = \"06:00\" }", 1)))
	if err != nil {
		t.Fatal(err)
	}
	j := c.Jobs["j"]
	want := retention.Policy{Last: 3, Yearly: retention.All, Within: retention.Period{Years: 1, Months: 6}}
	if j.Keep.Policy() != want || j.MaxRepack != 1000 {
		t.Errorf("%+v %d", j.Keep.Policy(), j.MaxRepack)
	}
	for in, want := range map[string]int64{"20G": 20 << 30, "1.5 KiB": 1536, "7": 7, "3mb": 3 << 20} {
		if n, err := ParseSize(in); err != nil || n != want {
			t.Errorf("%s: %d %v", in, n, err)
		}
	}
	at := time.Date(2026, 3, 1, 23, 0, 0, 0, time.UTC)
	if end := j.Window.StopAfter.After(at); !end.Equal(at.Add(7 * time.Hour)) {
		t.Errorf("window ends %v", end)
	}
	if end := j.Window.StopAfter.After(at.Add(2 * time.Hour)); !end.Equal(at.Add(7 * time.Hour)) {
		t.Errorf("window ends %v", end)
	}
	for _, d := range []struct {
		every Every
		ago   time.Duration
		due   bool
	}{
		{"", 1e9, false}, {Never, 1 << 60, false}, {Run, 0, true}, {Daily, 23 * time.Hour, true}, {Daily, 12 * time.Hour, false},
		{Weekly, 6 * 24 * time.Hour, false}, {Weekly, 7*24*time.Hour - time.Minute, true}, {Monthly, 20 * 24 * time.Hour, false}, {Monthly, 31 * 24 * time.Hour, true},
	} {
		if got := d.every.Due(at.Add(-d.ago), at); got != d.due {
			t.Errorf("%s after %v: due %v", d.every, d.ago, got)
		}
	}
}

func TestSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(file, []byte("secret\r\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NIGHT_SECRET", "secret")
	for _, s := range []Secret{{File: file}, {Command: "echo secret"}, {Env: "NIGHT_SECRET"}} {
		if p, err := s.Read(t.Context()); err != nil || string(p) != "secret" {
			t.Errorf("%+v: %q %v", s, p, err)
		}
	}
	// In the form that VmBackup writes, without a line end.
	if err := os.WriteFile(file, []byte("cGFzcyR3b3Jk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := (Secret{File: file, Obscured: true}).Read(t.Context()); err != nil || string(p) != "pass$word" {
		t.Errorf("%q %v", p, err)
	}
	for _, s := range []Secret{{}, {File: file + "x"}, {Command: "exit 3"}, {Command: "true"}, {Env: "NIGHT_NOTHING"}} {
		if p, err := s.Read(t.Context()); err == nil {
			t.Errorf("%+v: %q", s, p)
		}
	}
}

// The config files of VmBackup's README and its example.cfg.
const vmBackupExample = `
# Take Xen Pool DB backup: 0=No, 1=Yes (script default to 0=No)
pool_db_backup=0
max_backups=3
backup_dir=/path/to/backupspace
status_log=/path/to/backupspace/logs/status.log
vdi_export_format=raw
exclude=PROD-WinDomainController
exclude=DEV-DestructiveTest 
exclude=TEMP-.*
vm-export=my-vm-name
vm-export=my-second-vm
vm-export=my-third-vm:3
vdi-export=my-vm-name
vm-export=PROD.*
vm-export=DEV.*:2
`

func TestVmBackup(t *testing.T) {
	v, err := ParseVmBackup("/etc/weekend.cfg", []byte(vmBackupExample), VmBackupParams{PreClean: true})
	if err != nil {
		t.Fatal(err)
	}
	if v.MaxBackups != 3 || v.PoolDB || v.BackupDir != "/path/to/backupspace" || len(v.Exclude) != 3 || len(v.Export) != 6 || v.Exclude[1].Name != "DEV-DestructiveTest" {
		t.Errorf("%+v", v)
	}
	if len(v.Notes) != 1 || v.Notes[0].Line != 7 || !strings.Contains(v.Notes[0].Text, "no effect") {
		t.Errorf("notes %v", v.Notes)
	}
	var order []string
	for _, l := range v.Lines() {
		order = append(order, l.String())
	}
	want := []string{"vm-export=PROD.*", "vm-export=DEV.*:2", "vm-export=my-vm-name", "vm-export=my-second-vm", "vm-export=my-third-vm:3", "vdi-export=my-vm-name"}
	if !slices.Equal(order, want) {
		t.Errorf("order %v", order)
	}
	// Import writes an equivalent config.
	c, err := Parse("imported", v.TOML())
	if err != nil {
		t.Fatalf("%v\n%s", err, v.TOML())
	}
	j := c.Jobs["weekend"]
	if j == nil || j.Keep.Last != 3 || !j.ForgetFirst || j.Prune != Run || len(j.Rules) != 6 || j.Rules[5].Disks != "first" || j.Rules[1].Keep.Last != 2 ||
		!reflect.DeepEqual(j.Select.Patterns, []string{"PROD.*", "DEV.*"}) || !reflect.DeepEqual(j.Exclude.Names, []string{"PROD-WinDomainController", "DEV-DestructiveTest"}) {
		t.Errorf("%s\n%+v", v.TOML(), j)
	}
	if v, err = ParseVmBackup("x", nil, VmBackupParams{}); err != nil || v.MaxBackups != 4 || v.Job().Keep.Last != 4 || v.Repository() != "/snapshots/BACKUPS/xenkeep" {
		t.Errorf("defaults: %+v %v", v, err)
	}
}

// Lines of the README's chapter on regular expressions.
var vmBackupLines = []struct {
	line, matches, not string
	keep               int
}{
	{"exclude=DEV-phishing-test", "DEV-phishing-test", "DEV-phishing-test2", 0},
	{"exclude=PRD-PRINTER1", "PRD-PRINTER1", "PRD-PRINTER12", 0},
	{"exclude=PRD-PRINT$", "PRD-PRINT", "PRD-PRINTER", 0},
	{"exclude=PRD-a.*", "PRD-abc", "PRD-b", 0},
	{"exclude=DEV-V.*TEMP$", "DEV-VxTEMP", "DEV-VxTEMP2", 0},
	{"vdi-export=DEV-web3", "DEV-web3", "DEV-web33", 0},
	{"vdi-export=DEV-web3:7", "DEV-web3", "DEV-web", 7},
	{"vdi-export=DEV-.*(TEST|test).*", "DEV-a-test-2", "DEV-a-Test-2", 0},
	{"vdi-export=DEV-.*[Tt]est.*", "DEV-a-Test", "DEV-a-TEST", 0},
	{"vm-export=.*SAVE$:5", "mySAVE", "mySAVED", 5},
	{"vm-export=PRD-.*print[4-5]$:5", "PRD-xprint4", "PRD-xprint6", 5},
	{"vm-export=PRD-.*print[6-8]$:10", "PRD-print8", "PRD-print9", 10},
	{`vm-export=PRD-.*print[\d{1,}]$:8`, "PRD-print7", "PRD-printx", 8},
	{"vm-export=PRD-a*", "PRD-Test", "PRD", 0},
	{"vm-export=my vm 2 ", "my vm 2", "my vm 2 ", 0},
	{"vm-export=DEV mySql:0", "DEV mySql", "DEV-mySql", 0},
	{"vm-export=", "anything", "", 0},
}

// The lines of the README's chapter on regular expressions.
func TestVmBackupLines(t *testing.T) {
	for _, c := range vmBackupLines {
		v, err := ParseVmBackup("x", []byte(c.line), VmBackupParams{})
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		l := append(v.Exclude, v.Export...)[0]
		yes, err := l.Matches(c.matches)
		no, err2 := l.Matches(c.not)
		if err = errors.Join(err, err2); err != nil || !yes || no && c.not != "" || l.Keep != c.keep {
			t.Errorf("%s: %v %v %d %v", c.line, yes, no, l.Keep, err)
		}
	}
	for _, c := range []struct{ in, want string }{
		{"vm-export=PRD-[aA.*", "x:1: vm-export=PRD-[aA.*: invalid regex"},
		{"exclude=*", "x:1: exclude=*: invalid regex"},
		{"\nmax_backups=0", "x:2: max_backups=0: want a number of 1 or more"},
		{"max_backups=three", "want a number"},
		{"pool_db_backup=2", "want 0 or 1"},
		{"vdi_export_format=qcow2", "want raw or vhd"},
		{"max_backup=3", `unexpected key "max_backup"; did you mean "max_backups"?`},
		{"max_backups=3\nmax_backups=4", "x:2: max_backups is in line 1, too"},
		{"vm-export=a:b", `"b" is no number of backups`},
		{"vm-export=(?:a|b)", "is no number of backups"},
		{"vm-export=a:1:2", "more than one colon"},
		{"vm-export=a=b", "more than one ="},
		{" # indented", "want KEY=VALUE"},
		{"vm-export=(?<!a)b", "are not supported"},
		{"\xff=1", "not UTF-8"},
	} {
		if _, err := ParseVmBackup("x", []byte(c.in), VmBackupParams{}); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.in, err)
		}
	}
	v, err := ParseVmBackup("x", []byte("extra=1\nexclude=\nvdi-export="), VmBackupParams{IgnoreExtraKeys: true, Compress: true})
	if err != nil || len(v.Notes) != 4 || len(v.Exclude)+len(v.Export) != 0 {
		t.Errorf("%+v %v", v, err)
	}
	if p, err := ParseVmBackupParams([]string{"compress=True", "PRE_CLEAN=true", "ignore_extra_keys=False"}); err != nil || p != (VmBackupParams{Compress: true, PreClean: true}) {
		t.Errorf("%+v %v", p, err)
	}
	for _, a := range []string{"compress", "compress=1", "clean=True"} {
		if _, err := ParseVmBackupParams([]string{a}); err == nil {
			t.Errorf("%s was taken", a)
		}
	}
}

func FuzzVmBackup(f *testing.F) {
	f.Add([]byte(vmBackupExample))
	for _, c := range vmBackupLines {
		f.Add([]byte(c.line))
		f.Add([]byte("max_backups=3\n" + c.line + "\n#comment\nexclude=" + c.not + "\n"))
	}
	f.Add([]byte("vm-export=a'\"\\b.*:3\nexclude=[\\d]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1000 {
			return
		}
		v, err := ParseVmBackup("x.cfg", text, VmBackupParams{})
		if err != nil || len(v.Export) == 0 {
			return
		}
		if _, err := Parse("imported", v.TOML()); err != nil {
			t.Errorf("%q\n%s\n%v", text, v.TOML(), err)
		}
	})
}

// Any content of a file is a config, or its faults are reported.
func FuzzParse(f *testing.F) {
	f.Add(Example)
	f.Add([]byte(strings.Replace(small, "%s", "limits={read='20M@07:00-19:00,100M'}\nkeep={within='1y6m', last='all'}", 1)))
	f.Add([]byte("[[jobs.j.rules]]\nnames=['x']\n[[jobs.j.rules]]\nkeep={last=-2}\n[pools.\"a.b\"]\nurl=1979-05-27"))
	if v, err := ParseVmBackup("x.cfg", []byte(vmBackupExample), VmBackupParams{PreClean: true}); err == nil {
		f.Add(v.TOML())
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 4000 {
			return
		}
		c, err := Parse("x.toml", text)
		var bad *Problems
		if (c == nil) == (err == nil) || err != nil && (!errors.As(err, &bad) || len(bad.List) == 0) {
			t.Fatalf("%q\n%v", text, err)
		}
		if bad == nil {
			return
		}
		lines := bytes.Count(text, []byte("\n")) + 1
		for _, x := range bad.List {
			if x.Line < 0 || x.Line > lines || x.Text == "" {
				t.Errorf("%q\n%+v of %d lines", text, x, lines)
			}
		}
	})
}

// Row N14 of the fault list: all faults of a file are found in one pass, each on a
// line of its own with the line of the file and the key, in plain words.
func TestAllFaults(t *testing.T) {
	_, err := Parse("x.toml", []byte(`[repository]
location = 3
password = "secret"
[pools.p]
url = "h"
fingerprints = "aa"
insecure = "yes"
[log]
format = "xml
[jobs.n]
select = "all"
retries = "two"
prune = 7
prunee = "weekly"
keep = { daily = true, dayly = 3 }
max-repack = [1]
check = { budget = "20X" }
window = { stop-after = 6 }
rules = { names = ["a"] }
tags = ["a", 3]
hooks = { time-out = 1.5 }
metrics-file =
[[jobs.n.snapshot]]
[jobs.other]
select = { names = [""] }
notify = { mail = { server = 25, from = "x", to = ["a@b"] } }
[notify
ping = 3
[jobs."a/b"]
select = { all = true }
prune = 1979-05-27
`))
	var bad *Problems
	if !errors.As(err, &bad) {
		t.Fatal(err)
	}
	want := strings.Split(`x.toml:2: repository.location: want a text in quotes, not the number 3
x.toml:3: repository.password: want { file = "..." }, { command = "..." } or { env = "..." }: the secret itself does not belong into a config
x.toml:6: pools.p.fingerprints: want a list such as ["a", "b"], not the text "aa"
x.toml:7: pools.p.insecure: want true or false, not the text "yes"
x.toml:9: log.format: .*
x.toml:11: jobs.n.select: want a table \[jobs.n.select\], not the text "all"
x.toml:12: jobs.n.retries: want a whole number, not the text "two"
x.toml:13: jobs.n.prune: want a text in quotes, not the number 7
x.toml:14: jobs.n.prunee: unknown key; did you mean "prune"?
x.toml:15: jobs.n.keep.daily: want a number or "all", not true
x.toml:15: jobs.n.keep.dayly: unknown key; did you mean "daily"?
x.toml:16: jobs.n.max-repack: want a size such as "20G", not a list
x.toml:17: jobs.n.check.budget: size "20X": want a number with K, M, G or T, such as 20G
x.toml:18: jobs.n.window.stop-after: want a time of day such as "06:00" or a length such as "6h", not the number 6
x.toml:19: jobs.n.rules: want tables \[\[jobs.n.rules\]\], not a table
x.toml:20: jobs.n.tags\[1\]: want a text in quotes, not the number 3
x.toml:21: jobs.n.hooks.time-out: want a length of time such as "10m", not the number 1.5
x.toml:22: jobs.n.metrics-file: there is no value
x.toml:23: jobs.n.snapshot\[0\]: want a text in quotes, not a table
x.toml:25: jobs.other.select.names: "" is no name
x.toml:26: jobs.other.notify.mail.from: address "x": .*
x.toml:26: jobs.other.notify.mail.server: want a text in quotes, not the number 25
x.toml:27: notify: .*
x.toml:29: jobs.a/b: a job's name has no quotes, slashes or ends of lines
x.toml:31: jobs.a/b.prune: want a text in quotes, not 1979-05-27`, "\n")
	got := strings.Split(err.Error(), "\n")
	for i := range max(len(got), len(want)) {
		g, w := "", "^$"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = "^" + strings.NewReplacer("?", "\\?", "{ ", "\\{ ", " }", " \\}", "[\"a", "\\[\"a", "b\"]", "b\"\\]").Replace(want[i]) + "$"
		}
		if !regexp.MustCompile(w).MatchString(g) {
			t.Errorf("line %d:\n  %s\nwant:\n  %s", i+1, g, w)
		}
	}
	for _, word := range []string{"struct", "Go ", "config.", "[]string", "cannot decode", "toml:  "} {
		if strings.Contains(err.Error(), word) {
			t.Errorf("%q in:\n%v", word, err)
		}
	}
}

// Row N11 of the fault list: the check tries the files that runs write, reports the
// line of their key, and creates no file.
func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.toml")
	write := func(format string, args ...any) {
		t.Helper()
		if err := os.WriteFile(file, fmt.Appendf(nil, "[repository]\nlocation='/r'\n[pools.p]\nurl='h'\n"+format, args...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[log]\nfile='%[1]s/no/log'\n[jobs.j]\nselect={all=true}\nreport-file='%[1]s'\nmetrics-file='%[1]s/no/m'\nstatus-log='%[1]s/x.toml/s'\n", dir)
	if _, err := Load(file); err != nil {
		t.Errorf("a run would not begin: %v", err)
	}
	_, err := LoadStrictly(file)
	want := fmt.Sprintf(`%[2]s:6: log.file: %[1]s/no/log cannot be written: there is no folder %[1]s/no
%[2]s:9: jobs.j.report-file: %[1]s is a folder, not a file
%[2]s:10: jobs.j.metrics-file: %[1]s/no/m cannot be written: there is no folder %[1]s/no
%[2]s:11: jobs.j.status-log: %[1]s/x.toml/s cannot be written: not a directory`, dir, file)
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	write("[log]\nfile='%[1]s/log'\n[jobs.j]\nselect={all=true}\nreport-file='%[1]s/r'\nmetrics-file='%[1]s/m'\nstatus-log='%[1]s/s'\n", dir)
	if _, err := LoadStrictly(file); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	// Every key that names such a file is tried.
	for _, key := range []string{"report-file", "metrics-file", "status-log"} {
		if !slices.ContainsFunc((&Job{Name: "j", ReportFile: "r", MetricsFile: "m", StatusLog: "s"}).Outputs(), func(o Output) bool { return o.Key == "jobs.j."+key }) {
			t.Errorf("%s is not tried", key)
		}
	}
	for _, key := range keysAt([]string{"jobs", "x"}) {
		if (strings.HasSuffix(key, "-file") || strings.HasSuffix(key, "-log")) && !slices.Contains([]string{"report-file", "metrics-file", "status-log"}, key) {
			t.Errorf("%s: is it a file that runs write?", key)
		}
	}
}

// A byte order mark does not belong to a config, and a file that is not text is
// refused in one line.
func TestConfigBytes(t *testing.T) {
	dir := t.TempDir()
	text, err := os.ReadFile("example.toml")
	if err != nil {
		t.Fatal(err)
	}
	marked, binary := filepath.Join(dir, "bom.toml"), filepath.Join(dir, "binary.toml")
	if err := errors.Join(os.WriteFile(marked, append([]byte("\xef\xbb\xbf"), text...), 0o600), os.WriteFile(binary, []byte("\x7fELF\xff\xfe\x00"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(marked); err != nil {
		t.Error(err)
	}
	if _, err := Load(binary); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "not a text file") {
		t.Error(err)
	}
}

// Row S10 of the fault list: hooks do not receive the variables from which the
// config takes secrets.
func TestSecretVariables(t *testing.T) {
	c, err := Parse("x.toml", []byte(`[repository]
location = "/r"
password = { env = "A" }
[pools.p]
url = "xen1"
password = { env = "B" }
[notify.mail]
server = "smtp.example.net"
from = "a@b"
to = ["c@d"]
user = "night"
password = { env = "C" }
[jobs.j]
select = { all = true }
[jobs.j.notify.webhook]
url = "https://h/"
token = { env = "D" }
`))
	if err != nil {
		t.Fatal(err)
	}
	got := c.SecretVariables()
	slices.Sort(got)
	if !slices.Equal(got, []string{"A", "B", "C", "D"}) {
		t.Errorf("%q", got)
	}
}
