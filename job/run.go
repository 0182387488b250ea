package job

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/forget"
	"xenkeep/repo/retention"
)

// Lock locks a job on this machine before its repository is known. scope distinguishes
// jobs of the same name, for example in different config files. It returns ErrActive
// if another run holds the lock.
func Lock(stateDir, scope, job string) (release func(), err error) {
	return lockFile(stateDir, "config", scope+"\x00"+job, "job "+job)
}

// Hostname returns the machine's name, or "unknown".
func Hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return h
}

// ProcessName returns a name of this process that no other process ever has: boot,
// PID, start time, PID namespace, and the machine's ID ("-" if it has none).
func ProcessName() string {
	return processNameOf(os.Getpid())
}

// processNameOf returns "" if there is no such process, or if it has ended.
func processNameOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field, the command in parentheses, may contain anything.
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	fields := strings.Fields(string(rest))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	boot, space, id := here()
	if boot == "" {
		return ""
	}
	return fmt.Sprintf("%s %d %s %s %s", boot, pid, fields[19], space, id)
}

// here returns the IDs of this boot, PID namespace and machine.
func here() (boot, space, id string) {
	p, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", ""
	}
	if space, err = os.Readlink("/proc/self/ns/pid"); err != nil || space == "" {
		space = "-"
	}
	id = "-"
	if m, err := os.ReadFile("/etc/machine-id"); err == nil && len(bytes.TrimSpace(m)) > 0 {
		id = string(bytes.TrimSpace(m))
	}
	return strings.TrimSpace(string(p)), space, id
}

// ProcessGone reports whether a process of a machine has certainly ended. This can be
// decided only on the same machine and in the same container, because two machines may
// have the same name.
func ProcessGone(name, process, machine string) bool {
	f := strings.Fields(process)
	if name != machine || len(f) != 5 {
		return false
	}
	boot, space, id := here()
	if boot == "" || f[4] != id {
		return false
	}
	if f[0] != boot {
		return id != "-" // the same machine was restarted
	}
	pid, err := strconv.Atoi(f[1])
	return err == nil && f[3] == space && processNameOf(pid) != process
}

// ClaimDead reports whether the process of a claim has certainly ended.
func ClaimDead(c *repo.Claim, machine string) bool { return ProcessGone(c.Machine, c.Process, machine) }

// WithRun calls fn with a run on r. If there are claims of killed runs, it adopts the
// packs that they uploaded, and drops the claims.
func WithRun(ctx context.Context, r *repo.Repository, c *Common, roots []chunk.ID, fn func(ctx context.Context, run *backup.Run) error) error {
	claims, _, err := r.Claims(ctx)
	if err != nil {
		return err
	}
	if claims, err = withoutRetired(ctx, r, claims); err != nil {
		return err
	}
	if len(claims) > 0 {
		c.Log.Debug("claims of other runs: their uploads are looked for", "claims", len(claims))
	}
	if c.WriteLimit != nil {
		ctx = object.WithThrottle(ctx, c.WriteLimit.Wait)
	}
	err = backup.WithRun(ctx, r, backup.Options{
		Job: c.Job, Machine: c.Machine, Process: ProcessName(), Roots: roots,
		AdoptOrphans: len(claims) > 0, Level: c.Level, Now: c.Now,
	}, func(ctx context.Context, run *backup.Run) error {
		for _, claim := range claims {
			if ClaimDead(claim, c.Machine) {
				if err := r.DropClaim(ctx, claim); err != nil {
					c.Log.Warn("claim of a dead run stays", "run", claim.Run, "error", err)
				}
			}
		}
		return fn(ctx, run)
	})
	if errors.Is(err, backup.ErrClaimLeft) {
		c.Log.Warn("claim not removed: the next run drops it", "error", err)
		return nil
	}
	return err
}

// withoutRetired returns the claims without those of runs that were declared as ended,
// as a run does that can only add objects to the storage.
func withoutRetired(ctx context.Context, r *repo.Repository, claims []*repo.Claim) ([]*repo.Claim, error) {
	if len(claims) == 0 {
		return nil, nil
	}
	retired, _, err := r.Retirements(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(claims, func(c *repo.Claim) bool {
		return slices.ContainsFunc(retired, func(t *repo.Retired) bool { return t.Run == c.Run })
	}), nil
}

// Forget applies a policy to the VMs of the snapshots that were just published. It
// returns the IDs of the deleted snapshots.
func Forget(ctx context.Context, r *repo.Repository, c *Common, policy func(*repo.Snapshot) retention.Policy, done []*repo.Snapshot) ([]string, error) {
	if !slices.ContainsFunc(done, func(s *repo.Snapshot) bool { return !policy(s).IsZero() }) {
		return nil, nil
	}
	if err := r.CanPrune(); err != nil {
		return nil, err
	}
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	notes, bad, err := r.Notes(ctx)
	if err == nil && len(bad) > 0 {
		err = bad[0].Err // the unreadable note may protect a snapshot
	}
	if err != nil {
		return nil, err
	}
	protected := repo.Protected(notes)
	judge := retention.NewJudge(all, c.Now())
	var gone []*repo.Snapshot
	var stops []error
	for _, s := range done {
		var same []*repo.Snapshot
		for _, o := range all {
			if judge.Group(o) == judge.Group(s) {
				same = append(same, o)
			}
		}
		plan := forget.Decide(judge, policy(s), all, same, protected, false)
		for _, d := range plan.Decisions {
			if retention.FromFuture(d.Snapshot, c.Now()) && !policy(s).IsZero() {
				c.Log.Warn(FutureText(d.Snapshot))
			}
			c.Log.Debug("retention", "vm", d.Snapshot.VM.Name, "snapshot", d.Snapshot.Short(), "keep", d.Keep,
				"because", strings.Join(d.Reasons, ", "), "protected", protected[d.Snapshot.ID()])
		}
		for _, stop := range plan.Stops {
			stops = append(stops, stop)
		}
		gone = append(gone, plan.Gone()...)
	}
	forgotten, err := forget.Execute(ctx, r, gone, forget.Options{Grace: c.Grace, Weak: true, Now: c.Now(), Reason: "retention of job " + c.Job})
	var ids []string
	for _, s := range forgotten.Forgotten {
		ids = append(ids, s.ID())
	}
	return ids, errors.Join(append(stops, err)...)
}

// FutureText returns a message about a snapshot that is dated in the future, with the
// next step.
func FutureText(s *repo.Snapshot) string {
	return fmt.Sprintf("snapshot %s of %s is dated %s, in the future: no policy counts it, and it stays until xenkeep forget %s",
		s.Short(), cmp.Or(s.VM.Name, s.VM.UUID), s.DataTime.Local().Format("2006-01-02 15:04:05"), s.Short())
}

// SameVM reports whether two snapshots are of the same VM. Names are not compared.
func SameVM(a, b *repo.Snapshot) bool {
	return a.Origin == b.Origin && a.Pool.UUID == b.Pool.UUID && a.VM.UUID == b.VM.UUID
}

// Summarize returns the summary of a published snapshot.
func Summarize(s *repo.Snapshot) VMSummary {
	v := VMSummary{ID: s.ID(), VMUUID: s.VM.UUID, VMName: s.VM.Name, Kind: s.Kind, Complete: s.Complete, Missing: s.Missing, Disks: []DiskSummary{}}
	for _, d := range s.Disks {
		v.Disks = append(v.Disks, DiskSummary{
			VDI: d.VDI, Device: d.Device, Size: d.Size, Method: d.Method, Reason: d.Reason, DiskRead: d.Counts,
		})
	}
	return v
}

// CountingCallback returns a callback that adds to a meter.
func CountingCallback(m Meter) func(int64) { return func(n int64) { m.Add(n) } }
