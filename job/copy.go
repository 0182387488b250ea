package job

import (
	"context"
	"time"

	"xenkeep/repo"
	"xenkeep/repo/copy"
)

// CopyPlan is a copy of snapshots between repositories that can be looked at
// before it is done.
type CopyPlan struct {
	*copy.Plan
	to *repo.Repository
	c  Common
}

// PlanCopy plans a copy as a run of this machine.
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

// Execute copies, and drops the claims of runs of this machine that are dead.
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
