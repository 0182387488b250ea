package report

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// statusTime is the time format of VmBackup.
const statusTime = "2006/01/02 15:04:05"

func (r *Report) server() string {
	host, _, _ := strings.Cut(r.Machine, ".")
	return host
}

// statusLines returns the lines that VmBackup 3.25 would add to its status log for a
// run.
func (r *Report) statusLines() []string {
	var lines []string
	add := func(at time.Time, what string, rest ...string) {
		lines = append(lines, line(strings.Join(append([]string{at.Local().Format(statusTime), what, r.server()}, rest...), ",")))
	}
	add(r.Started, "vmbackup.py", "begin")
	s, w, e := 0, 0, 0
	for _, v := range r.VMs {
		what, fail := "vm-export", "VM-EXPORT-FAIL "
		if v.FirstDisk {
			what, fail = "vdi-export", "VDI-EXPORT-FAIL "
		}
		begun, ended := v.Started, v.Started.Add(time.Duration(v.Duration*float64(time.Second)))
		if begun.IsZero() {
			begun, ended = r.Started, r.Ended
		}
		figures := fmt.Sprintf("%s,elapse:%d size:%dG", v.Name, int(v.Duration)/60, v.Size>>30)
		add(begun, what, "begin", v.Name)
		switch {
		case v.State == OK:
			s++
			add(ended, what, "end", "SUCCESS "+figures)
		case v.State == Partial:
			w++
			add(ended, what, "end", "WARNING "+figures)
		case v.Missing:
			e++
			add(ended, what, "end", "ERROR verify_vm_name "+v.Name)
		default:
			e++
			add(ended, what, "end", fail+v.Name)
		}
	}
	if e == 0 && (r.State == Failed || r.Damage != "") {
		e++
	}
	state := "SUCCESS"
	if w > 0 {
		state = "WARNING"
	}
	if e > 0 {
		state = "ERROR"
	}
	add(r.Ended, "vmbackup.py", "end", state, fmt.Sprintf("S:%d W:%d E:%d", s, w, e))
	return lines
}

// AppendStatus adds the run to a status log in the form of VmBackup.
func (r *Report) AppendStatus(name string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(r.statusLines(), "\n") + "\n")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
