package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// ErrDrill is returned together with the result of a drill that failed.
var ErrDrill = errors.New("boot drill failed")

// NoteDrill is the kind of the notes that hold the results of drills; their text is a
// DrillVerdict as JSON.
const NoteDrill = "drill"

// DrillOptions are the options of a boot drill.
type DrillOptions struct {
	Target
	// Timeout is the time limit for the guest to start; 0 is ten minutes.
	Timeout time.Duration
	// Key is the key in its VM's xenstore_data where the guest writes its verdict, for
	// example "vm-data/drill": "ok", or the reason of a failure. "" waits for the
	// guest's tools instead.
	Key string
	// Poll is the time between two looks at the VM; 0 is two seconds.
	Poll time.Duration
}

// DrillVerdict is the result of a drill.
type DrillVerdict struct {
	Passed  bool    `json:"passed"`
	Reason  string  `json:"reason"`
	Seconds float64 `json:"seconds"` // from the VM's start
	Pool    string  `json:"pool_uuid"`
}

// DrillRecord is the record of a drill in a note.
type DrillRecord struct {
	Time time.Time `json:"time"`
	DrillVerdict
}

// Drills returns the records of the drills of a snapshot, oldest first. Unreadable
// notes are ignored.
func Drills(ctx context.Context, r *repo.Repository, s *repo.Snapshot) ([]DrillRecord, error) {
	notes, _, err := r.Notes(ctx)
	if err != nil {
		return nil, err
	}
	var out []DrillRecord
	for _, n := range notes {
		h := DrillRecord{Time: n.Time}
		if n.Snapshot == s.ID() && n.Kind == NoteDrill && json.Unmarshal([]byte(n.Text), &h.DrillVerdict) == nil {
			out = append(out, h)
		}
	}
	return out, nil
}

// Drill is the outcome of a drill. Its JSON form is documented in
// docs/reference/json.md.
type Drill struct {
	Type     string       `json:"type"` // "drill"
	Snapshot string       `json:"snapshot"`
	VMName   string       `json:"vm_name"`
	Verdict  DrillVerdict `json:"verdict"`
	Warnings []string     `json:"warnings,omitempty"`
	Duration float64      `json:"duration_s"`
}

// BootDrill restores a VM under another name, without network interfaces, starts it,
// waits until its guest is up, stores the result in a note on the snapshot, and
// removes the VM on every path. If the guest does not start, it returns ErrDrill; any
// other error means that the drill was not completed, and has no note.
func BootDrill(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, d DrillOptions, o Options) (*Drill, error) {
	if d.Timeout <= 0 {
		d.Timeout = 10 * time.Minute
	}
	if d.Poll <= 0 {
		d.Poll = 2 * time.Second
	}
	o.Resume = false
	p := newPoolRestore(r, pool, s, o)
	p.role = lease.RoleDrill
	out := &Drill{Type: "drill", Snapshot: s.ID(), VMName: fmt.Sprintf("xenkeep drill of %s %s", s.VM.Name, s.Short())}
	completed := false
	err := p.run(ctx, func() error {
		if err := p.runDrill(ctx, d, out); err != nil {
			return err
		}
		completed = true
		return errUndo // so that the VM is removed in any case
	})
	out.Warnings, out.Duration = p.out.Warnings, p.out.Duration
	if !completed {
		return out, err
	}
	var left *leftError
	if errors.As(err, &left) {
		err = fmt.Errorf("the VM of the drill could not be removed (xenkeep cleanup tries again): %w", left.left)
	} else {
		err = nil
	}
	verdict, _ := json.Marshal(out.Verdict)
	note := &repo.Note{Snapshot: s.ID(), Kind: NoteDrill, Time: p.o.Now().UTC(), Text: string(verdict)}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
	defer cancel()
	if nerr := r.PutNote(clean, note); nerr != nil {
		err = errors.Join(err, fmt.Errorf("note the drill on snapshot %s: %w", s.Short(), nerr))
	}
	if !out.Verdict.Passed {
		err = errors.Join(fmt.Errorf("snapshot %s of VM %s: %w: %s", s.Short(), s.VM.Name, ErrDrill, out.Verdict.Reason), err)
	}
	return out, err
}

// errUndo ends a completed drill.
var errUndo = errors.New("over")

// runDrill creates and starts the VM, and waits for the verdict.
func (p *poolRestore) runDrill(ctx context.Context, d DrillOptions, out *Drill) error {
	rec, err := p.pool.Pool(ctx)
	if err != nil {
		return err
	}
	if rec.HAEnabled {
		return errors.New("the pool has high availability enabled, whose plan a drill would take memory from: drill on another pool")
	}
	out.Verdict.Pool = rec.UUID
	m, err := p.planVM(ctx, VMOptions{Target: d.Target, Name: out.VMName})
	if err != nil {
		return err
	}
	if err := m.restore(ctx); err != nil {
		return err
	}
	if err := p.retryStart(ctx, p.pool.StartVM); err != nil {
		return fmt.Errorf("start the VM of the drill: %w", err)
	}
	began := p.o.Now()
	out.Verdict.Passed, out.Verdict.Reason, err = p.waitForGuest(ctx, d)
	out.Verdict.Seconds = p.o.Now().Sub(began).Seconds()
	return err
}

// waitForGuest polls a VM until its guest has started or failed.
func (p *poolRestore) waitForGuest(ctx context.Context, d DrillOptions) (passed bool, reason string, err error) {
	deadline := time.NewTimer(d.Timeout)
	defer deadline.Stop()
	tick := time.NewTicker(d.Poll)
	defer tick.Stop()
	for {
		vm, err := p.pool.VM(ctx, p.vm)
		if err != nil {
			return false, "", err
		}
		if d.Key != "" {
			switch verdict := vm.XenstoreData[d.Key]; verdict {
			case "":
			case "ok":
				return true, "the guest says ok in " + d.Key, nil
			default:
				return false, fmt.Sprintf("the guest says %.200q in %s", verdict, d.Key), nil
			}
		} else if up, err := p.toolsUp(ctx, &vm); up || err != nil {
			return up, "the guest's tools report", err
		}
		if vm.PowerState != "Running" {
			return false, "the VM went " + vm.PowerState + " by itself", nil
		}
		select {
		case <-ctx.Done():
			return false, "", context.Cause(ctx)
		case <-deadline.C:
			what := "no report of the guest's tools"
			if d.Key != "" {
				what = "nothing in " + d.Key
			}
			return false, fmt.Sprintf("%s after %s", what, d.Timeout), nil
		case <-tick.C:
		}
	}
}

// toolsUp reports whether a guest's tools have reported since its start.
func (p *poolRestore) toolsUp(ctx context.Context, vm *xapi.VM) (bool, error) {
	if vm.GuestMetrics.IsNull() {
		return false, nil
	}
	gm, err := p.pool.VMGuestMetrics(ctx, vm.GuestMetrics)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return false, nil
	}
	return len(gm.PVDriversVersion) > 0, err
}
