package lease_test

import (
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/xapi/xapisim"
)

// Row X11 of the fault list: a task of a transfer whose process has ended is removed,
// even if it is about a VM or a disk of the user, which no run has marked; the task of
// a live process, here or elsewhere, remains.
func TestCleanupTasksOfDeadProcess(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	f := strings.Fields(job.ProcessName())
	if len(f) != 5 {
		t.Skip("SKIP: the name of this process cannot be read")
	}
	f[2] = "1" // another process had this PID before
	dead := strings.Join(f, " ")
	vm, disk := w.VM("web").Ref, w.DiskAt("web", "0").Ref
	for i, c := range []struct {
		machine, process string
		ended            bool
		goes             bool
	}{
		{job.Hostname(), dead, true, true},
		{job.Hostname(), dead, false, true},
		{job.Hostname(), job.ProcessName(), true, false},
		{job.Hostname(), job.ProcessName(), false, false},
		{"elsewhere", dead, true, false},
		{"elsewhere", dead, false, false},
	} {
		w.Pool.NameTasks("by " + c.machine + ", process " + c.process)
		for _, about := range []string{"metadata of " + string(vm), "export of " + string(disk)} {
			task, err := w.Pool.CreateTask(t.Context(), "xenkeep: export", about)
			if err != nil {
				t.Fatal(err)
			}
			if c.ended {
				w.Must(nil, "task.set_status", task, "success")
			}
			w.Cleanup(lease.CleanupOptions{})
			left, err := w.Pool.Tasks(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			there := false
			for i := range left {
				there = there || left[i].Ref == task
			}
			if there == c.goes {
				t.Errorf("case %d, %s: there %v", i, about, there)
			}
		}
	}
}

// The tasks of a run name its process.
func TestTasksNameTheirProcess(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	seen := 0
	w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Times: -1, Do: func() {
		tasks, err := w.Pool.Tasks(t.Context())
		if err != nil {
			t.Error(err)
		}
		for i := range tasks {
			if strings.Contains(tasks[i].NameDescription, " by "+job.Hostname()+", process "+job.ProcessName()+" [") {
				seen++
			}
		}
	}})
	o := w.Options("web")
	o.DiskConcurrency = 1
	w.Backup(o)
	if seen == 0 {
		t.Error("no task names this process")
	}
}
