package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/internal/text"
	"xenkeep/job"
	"xenkeep/repo"
)

func sample() *Report {
	at := time.Date(2026, 11, 22, 0, 10, 0, 0, time.Local)
	return &Report{
		Type: "report", State: Partial, Job: "nightly \"x\"", Machine: "xk.example.net", Pool: "lab", Repository: "/srv", Started: at, Ended: at.Add(time.Hour), Duration: 3600,
		Uploaded: 5 << 20, Packs: 2, Forgotten: []string{"a", "b"}, Freed: 1 << 20, FreedLater: 2 << 20, Pruned: "done", Checked: "not due", Warnings: []string{"odd\nline"},
		VMs: []VM{
			{Name: "web", UUID: "u1", State: OK, Snapshot: "0123456789abcdef", Kind: "regular", Disks: []job.DiskSummary{
				{Device: "xvda", Method: "cbt", DiskRead: repo.DiskRead{Read: 1}}, {Device: "xvdb", Method: "full"},
			}, Size: 30 << 30, Read: 10 << 20, New: 5 << 20, Stored: 2 << 20, Started: at.Add(time.Minute), Duration: 125, Waits: job.Timing{Network: 0.7, Pool: 0.3}, Bottleneck: "network"},
			{Name: "db\n", UUID: "u2", State: Failed, Error: "SR full", Hint: "free space"},
			{Name: "old", UUID: "u3", State: Skipped, Error: "the window ended at 06:00"},
			{Name: "part", UUID: "u4", State: Partial, FirstDisk: true, Snapshot: "ff", Left: []string{"disk xvdb is left out: raw"}, Started: at, Duration: 60},
			{Name: "gone", State: Failed, Missing: true, Error: "no VM is called so"},
		},
	}
}

// Row N6 of the fault list: failures come first, each with its reason, hint and last
// good snapshot, and the columns of the table are aligned.
func TestText(t *testing.T) {
	r := sample()
	r.VMs[1].LastGood, r.VMs[1].LastGoodID = r.Ended.Add(-75*time.Hour), "9f7e6a5b00000000"
	r.VMs = append(r.VMs, VM{Name: "データベース本番", UUID: "u6", State: Failed, Error: "no space\x1b[2J"},
		VM{Name: strings.Repeat("long-", 20) + "name", UUID: "u7", State: OK, Snapshot: "aa", Duration: 1, Bottleneck: "cpu"})
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	want := `xenkeep partial: nightly "x" on xk.example.net, 2 of 7 VMs: db?, gone, データベース本番 failed
pool lab, repository /srv
from 2026-11-22 00:10:00 to 2026-11-22 01:10:00 (1h0m0s)

failed db?: SR full
  hint: free space
  last good: 2026-11-18 22:10:00, snapshot 9f7e6a5b, 3 days old

failed gone: no VM is called so

failed データベース本番: no space?[2J
  last good: none

partial part
  disk xvdb is left out: raw
  last good: none

skipped old: the window ended at 06:00
  last good: none

STATE    VM                                DISKS  METHOD    READ    NEW      STORED   TIME  RATE      BOTTLENECK
failed   db?
failed   gone
failed   データベース本番
partial  part                              0                0 B     0 B      0 B      1m0s  0 B/s      0 %
skipped  old
ok       web                               2      cbt,full  10 MiB  5.0 MiB  2.0 MiB  2m5s  82 KiB/s  network 70 %
ok       long-long-long-...long-long-name  0                0 B     0 B      0 B      1s    0 B/s     cpu 0 %

warning: odd?line
5.0 MiB uploaded in 2 packs, 2 old snapshots forgotten
prune: done, 1.0 MiB came back, 2.0 MiB more with the next pass
check: not due
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
	at := -1
	for l := range strings.Lines(b.String()) {
		for _, cell := range []string{"READ ", "10 MiB ", "0 B     0 B      0 B"} {
			if i := strings.Index(l, cell); i >= 0 {
				column := text.Width(l[:i])
				if at < 0 {
					at = column
				}
				if column != at {
					t.Errorf("READ begins in column %d, not %d: %s", column, at, l)
				}
			}
		}
	}
	r.VMs[0].Name, r.VMs[1].Name, r.VMs[5].Name = "a", "b", "c"
	r.VMs = append(r.VMs, VM{Name: "b", UUID: "u8", State: Failed})
	if s := r.Subject(); !strings.HasSuffix(s, ": b, gone, c and 1 more failed") {
		t.Error(s)
	}
	b.Reset()
	if err := r.Text(&b); err != nil || !strings.Contains(b.String(), "\nfailed b (u2): SR full\n") || !strings.Contains(b.String(), "\nfailed b (u8)\n") {
		t.Errorf("%v: two VMs of one name:\n%s", err, b.String())
	}
}

// Row N5 of the fault list: damage is the first word of the subject and an error of
// the status log, and its hint comes before the table.
func TestDamageFirst(t *testing.T) {
	at := time.Date(2026, 11, 22, 0, 10, 0, 0, time.Local)
	r := &Report{
		State: Partial, Job: "nightly", Machine: "vm.example.net", Pool: "lab", Repository: "/srv", Started: at, Ended: at, Checked: "damage found",
		Damage: "1 snapshot of big cannot be read in full", DamageHint: "run xenkeep repair snapshots", Findings: make([]string, 12),
		VMs: []VM{{Name: "big", UUID: "u1", State: OK, Snapshot: "aa", Bottleneck: "cpu"}},
	}
	for i := range r.Findings {
		r.Findings[i] = fmt.Sprint("finding ", i)
	}
	if s, want := r.Subject(), "xenkeep DAMAGE: nightly on vm.example.net, 1 of 1 VMs: 1 snapshot of big cannot be read in full"; s != want {
		t.Errorf("%s\nwant %s", s, want)
	}
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	above, _, table := strings.Cut(b.String(), "STATE ")
	for _, want := range []string{"\nDAMAGE: 1 snapshot of big cannot be read in full\n  finding 0\n", "  finding 9\n  and 2 more: xenkeep check lists all\n  hint: run xenkeep repair snapshots\n"} {
		if !table || !strings.Contains(above, want) {
			t.Errorf("no %q above the table:\n%s", want, b.String())
		}
	}
	if l := r.statusLines(); !strings.HasSuffix(l[len(l)-1], ",vmbackup.py,vm,end,ERROR,S:1 W:0 E:1") {
		t.Error(l)
	}
	if r.Level() != slog.LevelError {
		t.Error(r.Level())
	}
}

// Row N20 of the fault list: the log has a line for each VM that is not OK, with its
// reason, at a level that corresponds to the state.
func TestLog(t *testing.T) {
	log := func(r *Report) string {
		var b bytes.Buffer
		r.Log(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})))
		return b.String()
	}
	want := `level=WARN msg="VM skipped" vm=old uuid=u3 error="the window ended at 06:00"
level=WARN msg="VM partial" vm=part uuid=u4 error="disk xvdb is left out: raw"
level=ERROR msg="VM failed" vm=gone error="no VM is called so"
level=WARN msg="run ended" job="nightly \"x\"" state=partial vms=5 ok=1 duration=3600
`
	if got := log(sample()); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	r := &Report{State: Failed, Job: "n", Error: "no route", Hint: "is the host on?"}
	if got, want := log(r), "level=ERROR msg=\"run ended\" job=n state=failed vms=0 ok=0 duration=0 error=\"no route\" hint=\"is the host on?\"\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	if s := r.Subject(); !strings.HasSuffix(s, "0 of 0 VMs: no route") {
		t.Error(s)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "report.json")
	for range 2 {
		if err := sample().WriteFile(name); err != nil {
			t.Fatal(err)
		}
	}
	p, err := os.ReadFile(name)
	var back Report
	if err == nil {
		err = json.Unmarshal(p, &back)
	}
	if err != nil || back.State != Partial || len(back.VMs) != 5 {
		t.Errorf("%v %s", err, p)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%v", left)
	}
	if err := sample().WriteFile(filepath.Join(dir, "no", "report.json")); err == nil {
		t.Error("written into no folder")
	}
	if err := sample().AppendStatus(filepath.Join(dir, "no", "log")); err == nil {
		t.Error("written into no folder")
	}
}

// The lines are as VmBackup.py 3.25 writes them.
func TestStatusLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "status.log")
	if err := os.WriteFile(name, []byte("earlier\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sample().AppendStatus(name); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(name)
	want := `earlier
2026/11/22 00:10:00,vmbackup.py,xk,begin
2026/11/22 00:11:00,vm-export,xk,begin,web
2026/11/22 00:13:05,vm-export,xk,end,SUCCESS web,elapse:2 size:30G
2026/11/22 00:10:00,vm-export,xk,begin,db?
2026/11/22 01:10:00,vm-export,xk,end,VM-EXPORT-FAIL db?
2026/11/22 00:10:00,vm-export,xk,begin,old
2026/11/22 01:10:00,vm-export,xk,end,VM-EXPORT-FAIL old
2026/11/22 00:10:00,vdi-export,xk,begin,part
2026/11/22 00:11:00,vdi-export,xk,end,WARNING part,elapse:1 size:0G
2026/11/22 00:10:00,vm-export,xk,begin,gone
2026/11/22 01:10:00,vm-export,xk,end,ERROR verify_vm_name gone
2026/11/22 01:10:00,vmbackup.py,xk,end,ERROR,S:1 W:1 E:3
`
	if err != nil || string(p) != want {
		t.Errorf("%v\n%s", err, p)
	}
}

func TestMetrics(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.prom")
	good := []Good{{Name: "web", UUID: "u1", Data: sample().Ended.Add(-30 * time.Minute)}, {Name: "never", UUID: "u9"}, {Name: "red\x1b[31m", UUID: "u8"}}
	if err := sample().WriteMetrics(name, good); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`xenkeep_job_state{job="nightly \"x\"",state="partial"} 1`, `xenkeep_job_state{job="nightly \"x\"",state="ok"} 0`, `xenkeep_job_vms{job="nightly \"x\"",state="failed"} 2`,
		`xenkeep_vm_last_good_age_seconds{uuid="u1",vm="web"} 1800`, `xenkeep_vm_last_good_timestamp_seconds{uuid="u9",vm="never"} 0`,
		`vm="db\n"`, `vm="red?[31m"`, `xenkeep_vm_read_bytes{job="nightly \"x\"",uuid="u1",vm="web"} 1.048576e+07`,
	} {
		if !strings.Contains(string(p), want) {
			t.Errorf("no %q in\n%s", want, p)
		}
	}
	page, err := os.ReadFile("../../docs/reference/config.md")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(p)) {
		if name, ok := strings.CutPrefix(l, "# HELP "); ok && !strings.Contains(string(page), "| `"+strings.Fields(name)[0]+"` |") {
			t.Errorf("docs/reference/config.md lacks %s", strings.Fields(name)[0])
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIP: no promtool (Debian package prometheus)")
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = bytes.NewReader(p)
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// Row N4 of the fault list: a run that could not reach the pool keeps the ages of good
// snapshots, and the other metrics of its VMs, in the file.
func TestMetricsCarriedOver(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.prom")
	if got, err := ReadGood(name); err != nil || len(got) != 0 {
		t.Errorf("of a missing file: %v %v", got, err)
	}
	good := []Good{{Name: "web", UUID: "u1", Data: sample().Ended.Add(-30 * time.Minute)}, {Name: "never\n\"x\"", UUID: "u9"}}
	if err := sample().WriteMetrics(name, good); err != nil {
		t.Fatal(err)
	}
	back, err := ReadGood(name)
	if err != nil || len(back) != 2 {
		t.Fatalf("%v %v", back, err)
	}
	for i, g := range good {
		j := slices.IndexFunc(back, func(b Good) bool { return b.UUID == g.UUID })
		if j < 0 || back[j].Name != g.Name || back[j].Data.Unix() != g.Data.Unix() && !g.Data.IsZero() || back[j].Data.IsZero() != g.Data.IsZero() {
			t.Errorf("%d: %+v, want %+v", i, back, g)
		}
	}
	for range 2 {
		failed := &Report{State: Failed, Job: sample().Job, Error: "no route", Started: sample().Ended.Add(23 * time.Hour), Ended: sample().Ended.Add(24 * time.Hour)}
		if err := failed.WriteMetrics(name, back); err != nil {
			t.Fatal(err)
		}
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			`xenkeep_job_state{job="nightly \"x\"",state="failed"} 1`, `xenkeep_vm_last_good_age_seconds{uuid="u1",vm="web"} 88200`,
			fmt.Sprintf(`xenkeep_vm_last_good_timestamp_seconds{uuid="u1",vm="web"} %v`, float64(good[0].Data.Unix())), `xenkeep_vm_last_good_timestamp_seconds{uuid="u9",vm="never\n\"x\""} 0`,
			`xenkeep_vm_state{job="nightly \"x\"",state="failed",uuid="u2",vm="db\n"} 1`, `xenkeep_vm_read_bytes{job="nightly \"x\"",uuid="u1",vm="web"} 1.048576e+07`,
		} {
			if !strings.Contains(string(p), want+"\n") {
				t.Errorf("no %s in\n%s", want, p)
			}
		}
	}
	// A run that reached the pool replaces them.
	ok := &Report{State: OK, Job: sample().Job, Started: sample().Started, Ended: sample().Ended}
	if err := ok.WriteMetrics(name, nil); err != nil {
		t.Fatal(err)
	}
	if p, _ := os.ReadFile(name); bytes.Contains(p, []byte("xenkeep_vm_")) {
		t.Errorf("%s", p)
	}
	// A damaged file is replaced.
	if err := os.WriteFile(name, []byte("{{{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadGood(name); err == nil {
		t.Error("a damaged file is read")
	}
	if err := (&Report{State: Failed, Job: "j", Error: "x"}).WriteMetrics(name, good); err != nil {
		t.Error(err)
	}
}
