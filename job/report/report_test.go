package report

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
			}, Size: 30 << 30, Read: 10 << 20, New: 5 << 20, Stored: 2 << 20, Started: at.Add(time.Minute), Duration: 125, Waits: job.Waits{Network: 0.7, Pool: 0.3}, Bottleneck: "network"},
			{Name: "db\n", UUID: "u2", State: Failed, Error: "SR full", Hint: "free space"},
			{Name: "old", UUID: "u3", State: Skipped, Error: "the window ended at 06:00"},
			{Name: "part", UUID: "u4", State: Partial, FirstDisk: true, Snapshot: "ff", Left: []string{"disk xvdb is left out: raw"}, Started: at, Duration: 60},
			{Name: "gone", State: Failed, Missing: true, Error: "no VM is called so"},
		},
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := sample().Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"xenkeep partial: nightly \"x\" on xk.example.net, 1 of 5 VMs\n", "STATE    VM   DISKS  METHOD    READ", "ok       web  2      cbt,full  10 MiB",
		"network 70 %", "failed   db?", "failed db?: SR full\n  hint: free space\n", "skipped old: the window ended", "part: disk xvdb is left out: raw",
		"warning: odd?line\n", "5.0 MiB uploaded in 2 packs, 2 old snapshots forgotten\n", "prune: done, 1.0 MiB came back, 2.0 MiB more with the next pass\n", "check: not due\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
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

// The lines as VmBackup.py 3.25 writes them.
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
	good := []Good{{Name: "web", UUID: "u1", Data: sample().Ended.Add(-30 * time.Minute)}, {Name: "never", UUID: "u9"}}
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
		`vm="db\n"`, `xenkeep_vm_read_bytes{job="nightly \"x\"",uuid="u1",vm="web"} 1.048576e+07`,
	} {
		if !strings.Contains(string(p), want) {
			t.Errorf("no %q in\n%s", want, p)
		}
	}
	page, err := os.ReadFile("../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(p)) {
		if name, ok := strings.CutPrefix(l, "# HELP "); ok && !strings.Contains(string(page), "| `"+strings.Fields(name)[0]+"` |") {
			t.Errorf("docs/reference.md lacks %s", strings.Fields(name)[0])
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
