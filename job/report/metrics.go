package report

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"xenkeep/internal/text"
)

// Good is the newest good snapshot of a VM; zero if it has none.
type Good struct {
	Name, UUID string
	Data       time.Time
}

// WriteMetrics writes a text file for Prometheus' node exporter: the run, its VMs, and
// the last good snapshot of every VM of the pool. The file gets its name only when it
// is complete.
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
	damaged := 0.0
	if r.Damage != "" {
		damaged = 1
	}
	one("job_damaged", "1 where the last run of the job met damage in the repository.", damaged)
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
	stored := gauge("vm_stored_bytes", "The bytes that these occupy in the repository.", "job", "vm", "uuid")
	for _, v := range r.VMs {
		for _, s := range states {
			state.WithLabelValues(r.Job, labelText(v.Name), v.UUID, string(s)).Set(is(v.State, s))
		}
		if v.Snapshot == "" {
			continue
		}
		took.WithLabelValues(r.Job, labelText(v.Name), v.UUID).Set(v.Duration)
		read.WithLabelValues(r.Job, labelText(v.Name), v.UUID).Set(float64(v.Read))
		fresh.WithLabelValues(r.Job, labelText(v.Name), v.UUID).Set(float64(v.New))
		stored.WithLabelValues(r.Job, labelText(v.Name), v.UUID).Set(float64(v.Stored))
	}
	age := gauge("vm_last_good_age_seconds", "Age of the VM's newest good snapshot when the run ended; no line for a VM without one.", "vm", "uuid")
	at := gauge("vm_last_good_timestamp_seconds", "When the data of the VM's newest good snapshot was so; 0 for a VM without one.", "vm", "uuid")
	for _, g := range all {
		if g.Data.IsZero() {
			at.WithLabelValues(labelText(g.Name), g.UUID).Set(0)
			continue
		}
		age.WithLabelValues(labelText(g.Name), g.UUID).Set(r.Ended.Sub(g.Data).Seconds())
		at.WithLabelValues(labelText(g.Name), g.UUID).Set(float64(g.Data.Unix()))
	}
	var from prometheus.Gatherer = reg
	if r.Error != "" { // the run ended before its VMs were known, or before all were saved
		from = prometheus.Gatherers{reg, r.carried(name)}
	}
	return prometheus.WriteToTextfile(name, from)
}

const (
	lastGoodName = "xenkeep_vm_last_good_timestamp_seconds"
	vmPrefix     = "xenkeep_vm_"
)

// labelText replaces control characters in a name, because a terminal that shows the
// file would execute them. Line ends remain: the format escapes them.
func labelText(name string) string {
	lines := strings.Split(name, "\n")
	for i := range lines {
		lines[i] = text.Clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// families parses a metrics file; a missing file is empty.
func families(name string) (map[string]*dto.MetricFamily, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := expfmt.NewTextParser(model.UTF8Validation)
	return p.TextToMetricFamilies(f)
}

// label returns the value of a label of m.
func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// ReadGood reads the newest good snapshots from a metrics file that an earlier run
// wrote. A missing file has none.
func ReadGood(name string) ([]Good, error) {
	all, err := families(name)
	if err != nil {
		return nil, err
	}
	list := []Good{}
	for _, m := range all[lastGoodName].GetMetric() {
		g := Good{Name: label(m, "vm"), UUID: label(m, "uuid")}
		if v := m.GetGauge().GetValue(); v > 0 {
			g.Data = time.Unix(int64(v), 0)
		}
		list = append(list, g)
	}
	return list, nil
}

// carried returns the metrics of the job's VMs that the last run wrote and for which
// this run has no values: an alert on a VM must not end because the run failed.
func (r *Report) carried(name string) prometheus.GathererFunc {
	return func() ([]*dto.MetricFamily, error) {
		all, _ := families(name) // an unreadable file is replaced
		mine := make(map[string]bool)
		for _, v := range r.VMs {
			mine[v.UUID] = true
		}
		var list []*dto.MetricFamily
		for _, key := range slices.Sorted(maps.Keys(all)) {
			f := all[key]
			f.Metric = slices.DeleteFunc(f.Metric, func(m *dto.Metric) bool { return label(m, "job") != r.Job || mine[label(m, "uuid")] })
			if strings.HasPrefix(key, vmPrefix) && len(f.Metric) > 0 {
				list = append(list, f)
			}
		}
		return list, nil
	}
}
