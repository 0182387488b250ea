package job

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"xenkeep/xapi"

	"github.com/dustin/go-humanize"
)

// srNeed is how much space snapshots need on an SR.
type srNeed struct {
	sr   xapi.SR
	need int64
}

func (n *srNeed) free() int64 { return max(int64(n.sr.PhysicalSize-n.sr.PhysicalUtilisation), 0) }

func (n *srNeed) String() string {
	s := fmt.Sprintf("SR %s: a snapshot needs %s", n.sr.NameLabel, humanize.IBytes(uint64(n.need)))
	if n.sr.PhysicalSize > 0 { // some drivers do not report it
		s += fmt.Sprintf(", %s are free", humanize.IBytes(uint64(n.free())))
	}
	return s
}

// spaceError reports SRs that have no room for the snapshots of a VM's disks.
type spaceError struct {
	needs []srNeed
	err   error
}

func (e *spaceError) Error() string {
	var parts []string
	for i := range e.needs {
		parts = append(parts, e.needs[i].String())
	}
	return fmt.Sprintf("%s: %v", strings.Join(parts, "; "), e.err)
}

func (e *spaceError) Unwrap() error { return e.err }

// Hint names the SRs, and how much is missing where that is known.
func (e *spaceError) Hint() string {
	var parts []string
	for i := range e.needs {
		n := &e.needs[i]
		amount := "space"
		if missing := n.need - n.free(); n.sr.PhysicalSize > 0 && missing > 0 {
			amount = humanize.IBytes(uint64(missing))
		}
		parts = append(parts, fmt.Sprintf("free %s on SR %s (%s)", amount, n.sr.NameLabel, n.sr.UUID))
	}
	return strings.Join(parts, ", ") + ", or move disks off it; deleted snapshots give their space back once they are coalesced"
}

// spaceNeeds returns what a VM snapshot needs on each SR, in the order of its
// disks.
func spaceNeeds(p *vmPlan) []srNeed {
	var list []srNeed
	for _, d := range p.disks {
		i := slices.IndexFunc(list, func(n srNeed) bool { return n.sr.Ref == d.sr.Ref })
		if i < 0 {
			i = len(list)
			list = append(list, srNeed{sr: d.sr})
		}
		if d.sr.Thick() && d.vbd.CurrentlyAttached {
			list[i].need += thickNeed(int64(d.vdi.VirtualSize))
		} else {
			list[i].need += ThinNeed
		}
	}
	return list
}

// checkSpace refuses plans whose snapshots their SRs have no room for.
func checkSpace(p *vmPlan) error {
	short := slices.DeleteFunc(spaceNeeds(p), func(n srNeed) bool { return n.sr.PhysicalSize <= 0 || n.free() >= n.need })
	if len(short) == 0 {
		return nil
	}
	return &spaceError{needs: short, err: ErrSpace}
}

// explainSpace adds to a pool's error which SRs are concerned: the pool itself
// reports only that some storage is full.
func (v *vmBackup) explainSpace(ctx context.Context, err error) error {
	if !xapi.IsCode(err, xapi.SRNoSpace) {
		return err
	}
	needs := spaceNeeds(v.plan)
	for i := range needs {
		if sr, serr := v.b.pool.SR(ctx, needs[i].sr.Ref); serr == nil {
			needs[i].sr = sr
		}
	}
	if short := slices.DeleteFunc(slices.Clone(needs), func(n srNeed) bool { return n.sr.PhysicalSize <= 0 || n.free() >= n.need }); len(short) > 0 {
		needs = short
	}
	return &spaceError{needs: needs, err: err}
}
