package nightly

import (
	"context"
	"errors"
	"fmt"

	"xenkeep/chunkstore/seal"
	"xenkeep/job/config"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
)

// maintain checks and then prunes, if these are due.
func (x *night) maintain(ctx context.Context) {
	x.checkDue(ctx)
	t := readTurns(x.StateDir, x.repo.ID())
	switch {
	case x.rep.Pruned != "" || x.Job.Prune == "" || x.Job.Prune == config.Never:
	case x.Job.Prune.Due(t.Prune, x.Now()):
		x.prune(ctx)
	default:
		x.rep.Pruned = "not due"
		x.Log.Debug("prune is not due", "every", x.Job.Prune, "last", t.Prune)
	}
}

// checkDue runs the check if it is due, once a night.
func (x *night) checkDue(ctx context.Context) {
	every := x.Job.Check.Every
	if every == "" && x.Job.Check.Budget > 0 {
		every = config.Daily
	}
	switch {
	case x.rep.Checked != "" || every == "" || every == config.Never:
	case every.Due(readTurns(x.StateDir, x.repo.ID()).Check, x.Now()):
		x.check(ctx)
	default:
		x.rep.Checked = "not due"
		x.Log.Debug("check is not due", "every", every)
	}
}

// prune frees space, unless the check of this night has found damage or failed: the
// chunks that a damaged snapshot needs are not known, and a chunk that is bad in one
// pack may be intact in a pack that a prune would delete.
func (x *night) prune(ctx context.Context) {
	if x.rep.Checked == checkDamage || x.rep.Checked == checkFailed {
		x.rep.Pruned = "held back"
		x.warn("nothing is pruned tonight, because the check %s", map[string]string{checkDamage: "found damage", checkFailed: "failed"}[x.rep.Checked])
		return
	}
	o := prune.Options{MaxRepack: defaultRepack, Now: x.Now}
	if x.Job.MaxRepack > 0 {
		o.MaxRepack = int64(x.Job.MaxRepack)
	}
	plan, err := prune.New(ctx, x.repo, o)
	var res *prune.Result
	if err == nil {
		res, err = plan.Execute(ctx)
	}
	if err != nil {
		x.rep.Pruned = "failed"
		x.partial(fmt.Errorf("prune: %w", err))
		if errors.Is(err, prune.ErrUnreadable) && x.rep.Damage == "" {
			x.damaged(nil, "prune met a snapshot that cannot be read", "run xenkeep check: it reports what is damaged")
		}
		return
	}
	x.rep.Pruned = "done"
	x.rep.Freed, x.rep.FreedLater = res.Deleted.Bytes, plan.Later
	x.turned(func(t *turns) { t.Prune = x.Now() })
}

func (x *night) turned(set func(*turns)) {
	t := readTurns(x.StateDir, x.repo.ID())
	set(t)
	if err := t.save(); err != nil {
		x.warn("remember that it was done: %w", err)
	}
}

func (x *night) check(ctx context.Context) {
	err := x.repo.LoadIndex(ctx)
	var rep *check.Report
	if err == nil {
		b := int64(x.Job.Check.Budget)
		rep, err = check.Run(ctx, x.repo, check.Options{ReadData: b > 0, Budget: b, Now: x.Now})
	}
	if err != nil {
		x.rep.Checked = checkFailed
		x.partial(fmt.Errorf("check: %w", err))
		return
	}
	x.rep.Checked, x.unsound = "clean", rep.Unsound()
	a := x.affected(ctx, rep)
	for _, f := range a.sorted(rep.Findings) {
		x.rep.Findings = append(x.rep.Findings, oneLine(errors.New(x.Finding(f))))
	}
	n := rep.Damaged()
	if others := len(rep.Findings) - n; others > 0 {
		// Whoever can write to the storage must not be able to end prunes with junk.
		x.partial(fmt.Errorf("check: %s that are ignored: someone else can write to the storage, or has one of its keys", plural(others, "object")))
	}
	if n > 0 {
		x.rep.Checked = checkDamage
		x.damaged(fmt.Errorf("check: %d findings: %w", n, seal.ErrCorrupt), a.sentence(rep),
			"keep older snapshots, and run xenkeep repair snapshots: it lists what is lost; xenkeep repair packs saves what can be read")
	}
	x.turned(func(t *turns) { t.Check = x.Now() })
}

// Results of a night's check after which nothing is pruned.
const (
	checkDamage = "damage found"
	checkFailed = "failed"
)
