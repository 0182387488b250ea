package job

import (
	"context"
	"time"

	"xenkeep/repo"
	"xenkeep/repo/copy"
)

// CopyPlan is a planned copy of snapshots to another repository, which can be examined
// before it is executed.
type CopyPlan struct {
	*copy.Plan
	to *repo.Repository
	c  Common
}

// PlanCopy plans a copy, as a run on this machine, of the snapshots for which pick
// returns true.
func PlanCopy(ctx context.Context, from, to *repo.Repository, c Common, pick func(*repo.Snapshot) bool) (*CopyPlan, error) {
	c.Defaults()
	p, err := copy.New(ctx, from, to, copy.Options{
		Pick: pick, Level: c.Level, Machine: c.Machine, Process: ProcessName(), Now: c.Now,
		Begin: func(s *repo.Snapshot, total int64) (func(int64), func()) {
			m := c.Progress.Begin(s.VM.Name, total)
			return m.Add, m.Done
		},
	})
	return &CopyPlan{Plan: p, to: to, c: c}, err
}

// Execute copies the snapshots, and drops the claims of dead runs of this machine. It
// returns the duration, too.
func (p *CopyPlan) Execute(ctx context.Context) (*copy.Result, time.Duration, error) {
	started := p.c.Now()
	claims, _, err := p.to.Claims(ctx)
	if err != nil {
		return new(copy.Result), 0, err
	}
	res, err := p.Plan.Execute(ctx)
	if err == nil && len(p.Todo) > 0 {
		for _, claim := range claims {
			if ClaimDead(claim, p.c.Machine) {
				if err := p.to.DropClaim(ctx, claim); err != nil {
					p.c.Log.Warn("claim of a dead run stays", "run", claim.Run, "error", err)
				}
			}
		}
	}
	return res, p.c.Now().Sub(started), err
}
