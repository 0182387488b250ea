package report

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Good is the newest good snapshot of a VM; zero where it has none.
type Good struct {
	Name, UUID string
	Data       time.Time
}

// WriteMetrics writes a text file for Prometheus' node exporter: the run, its
// VMs, and the last good snapshot of every VM of the pool. The file has its
// name only when it is whole.
func (r *Report) WriteMetrics(name string, all []Good) error {
	reg := prometheus.NewPedanticRegistry()
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "xenkeep", Name: name, Help: help}, labels)
		reg.MustRegister(g)
		return g
	}
	one := func(name, help string, v float64) { gauge(name, help, "job").WithLabelValues(r.Job).Set(v) }
	one("job_start_timestamp_seconds", "When the last run of the job began.", float64(r.Started.Unix()))
	one("job_end_timestamp_seconds", "When the last run of the job ended.", float64(r.Ended.Unix()))
	one("job_duration_seconds", "How long the last run of the job took.", r.Duration)
	one("job_uploaded_bytes", "Bytes that the last run of the job uploaded.", float64(r.Uploaded))
	one("job_freed_bytes", "Bytes that prune freed in the last run of the job.", float64(r.Freed))
	one("job_findings", "Damages that the check of the last run found.", float64(len(r.Findings)))
	states := []State{OK, Partial, Failed, Skipped}
	is := func(a, b State) float64 {
		if a == b {
			return 1
		}
		return 0
	}
	run := gauge("job_state", "1 for the state in which the last run of the job ended.", "job", "state")
	vms := gauge("job_vms", "VMs of the last run of the job, by their state.", "job", "state")
	for _, s := range states {
		run.WithLabelValues(r.Job, string(s)).Set(is(r.State, s))
		vms.WithLabelValues(r.Job, string(s)).Set(float64(r.Count(s)))
	}
	state := gauge("vm_state", "1 for the state in which the VM's last backup by the job ended.", "job", "vm", "uuid", "state")
	took := gauge("vm_duration_seconds", "How long the VM's last backup took.", "job", "vm", "uuid")
	read := gauge("vm_read_bytes", "Bytes read from the pool by the VM's last backup.", "job", "vm", "uuid")
	fresh := gauge("vm_new_bytes", "Bytes of the VM's last backup that the repository had not.", "job", "vm", "uuid")
	stored := gauge("vm_stored_bytes", "What these took in the repository.", "job", "vm", "uuid")
	for _, v := range r.VMs {
		for _, s := range states {
			state.WithLabelValues(r.Job, v.Name, v.UUID, string(s)).Set(is(v.State, s))
		}
		if v.Snapshot == "" {
			continue
		}
		took.WithLabelValues(r.Job, v.Name, v.UUID).Set(v.Duration)
		read.WithLabelValues(r.Job, v.Name, v.UUID).Set(float64(v.Read))
		fresh.WithLabelValues(r.Job, v.Name, v.UUID).Set(float64(v.New))
		stored.WithLabelValues(r.Job, v.Name, v.UUID).Set(float64(v.Stored))
	}
	age := gauge("vm_last_good_age_seconds", "Age of the VM's newest good snapshot when the run ended; no line for a VM without one.", "vm", "uuid")
	at := gauge("vm_last_good_timestamp_seconds", "When the data of the VM's newest good snapshot was so; 0 for a VM without one.", "vm", "uuid")
	for _, g := range all {
		if g.Data.IsZero() {
			at.WithLabelValues(g.Name, g.UUID).Set(0)
			continue
		}
		age.WithLabelValues(g.Name, g.UUID).Set(r.Ended.Sub(g.Data).Seconds())
		at.WithLabelValues(g.Name, g.UUID).Set(float64(g.Data.Unix()))
	}
	return prometheus.WriteToTextfile(name, reg)
}
