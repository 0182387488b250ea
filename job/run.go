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
	"xenkeep/repo/retention"
)

// Lock takes the right to run a job on this machine before its repository is
// known; scope tells apart what may bear the same names, such as config files.
// The error is ErrActive where another run has it.
func Lock(stateDir, scope, job string) (release func(), err error) {
	return lockFile(stateDir, "config", scope+"\x00"+job, "job "+job)
}

func Hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return h
}

// ProcessName names this process so that no other will ever have the name:
// boot, PID, start time, PID namespace, and the machine's ID ("-" where it has
// none).
func ProcessName() string {
	return processNameOf(os.Getpid())
}

// processNameOf is "" where there is no such process, or it has ended.
func processNameOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field, the command in parentheses, may hold anything.
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

// here names this boot, PID namespace and machine.
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

// ProcessGone tells whether a process of a machine is known to have ended.
// Only its own machine can tell, and only within the same container: two that
// bear one name are not one machine.
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
		return id != "-" // this very machine, restarted
	}
	pid, err := strconv.Atoi(f[1])
	return err == nil && f[3] == space && processNameOf(pid) != process
}

// ClaimDead tells whether a claim's process is known to be gone.
func ClaimDead(c *repo.Claim, machine string) bool { return ProcessGone(c.Machine, c.Process, machine) }

// WithRun opens a run on r: it finds out whether a killed run left something
// behind, takes its work in, and drops its claim.
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
	err = backup.Do(ctx, r, backup.Options{
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
		c.Log.Warn("claim left behind: the next run drops it", "error", err)
		return nil
	}
	return err
}

// withoutRetired leaves out the claims of runs that were declared over: whoever may
// only add to the storage ends a run so.
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

// Forget applies a policy to the VMs of the snapshots just published.
func Forget(ctx context.Context, r *repo.Repository, c *Common, policy func(*repo.Snapshot) retention.Policy, done []*repo.Snapshot) ([]string, error) {
	if !slices.ContainsFunc(done, func(s *repo.Snapshot) bool { return !policy(s).IsZero() }) {
		return nil, nil
	}
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	notes, bad, err := r.Notes(ctx)
	if err == nil && len(bad) > 0 {
		err = bad[0].Err // it may protect one
	}
	if err != nil {
		return nil, err
	}
	protected := repo.Protected(notes)
	judge := retention.NewJudge(all, c.Now())
	var deleted []string
	for _, s := range done {
		var same []*repo.Snapshot
		for _, o := range all {
			if judge.Group(o) == judge.Group(s) {
				same = append(same, o)
			}
		}
		for _, d := range judge.Apply(policy(s), same) {
			if retention.FromFuture(d.Snapshot, c.Now()) && !policy(s).IsZero() {
				c.Log.Warn(FutureText(d.Snapshot))
			}
			c.Log.Debug("retention", "vm", d.Snapshot.VM.Name, "snapshot", d.Snapshot.Short(), "keep", d.Keep,
				"because", strings.Join(d.Reasons, ", "), "protected", protected[d.Snapshot.ID()])
			if d.Keep || protected[d.Snapshot.ID()] {
				continue
			}
			err := r.DeleteSnapshot(ctx, d.Snapshot)
			if errors.Is(err, object.ErrLocked) {
				continue // its time comes
			}
			if err != nil {
				return deleted, err
			}
			deleted = append(deleted, d.Snapshot.ID())
		}
	}
	return deleted, nil
}

// FutureText says that a snapshot is dated in the future, and what to do.
func FutureText(s *repo.Snapshot) string {
	return fmt.Sprintf("snapshot %s of %s is dated %s, in the future: no policy counts it, and it stays until xenkeep forget %s",
		s.Short(), cmp.Or(s.VM.Name, s.VM.UUID), s.Data.Local().Format("2006-01-02 15:04:05"), s.Short())
}

// SameVM tells whether two snapshots are of one VM; names do not count.
func SameVM(a, b *repo.Snapshot) bool {
	return a.Origin == b.Origin && a.Pool.UUID == b.Pool.UUID && a.VM.UUID == b.VM.UUID
}

func Summarize(s *repo.Snapshot) VMSummary {
	v := VMSummary{ID: s.ID(), VMUUID: s.VM.UUID, VMName: s.VM.Name, Kind: s.Kind, Complete: s.Complete, Missing: s.Missing, Disks: []DiskSummary{}}
	for _, d := range s.Disks {
		v.Disks = append(v.Disks, DiskSummary{
			VDI: d.VDI, Device: d.Device, Size: d.Size, Method: d.Method, Reason: d.Reason, DiskRead: d.Counts,
		})
	}
	return v
}

// CountingCallback is a progress callback of a meter.
func CountingCallback(m Meter) func(int64) { return func(n int64) { m.Add(n) } }
