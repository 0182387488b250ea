package vmplan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"xenkeep/job"
	"xenkeep/xapi"
)

// SRNeed is the space in bytes that snapshots need on an SR.
type SRNeed struct {
	SR   xapi.SR
	Need int64
}

// Free returns the free space of the SR in bytes.
func (n *SRNeed) Free() int64 { return max(int64(n.SR.PhysicalSize-n.SR.PhysicalUtilisation), 0) }

func (n *SRNeed) String() string {
	s := fmt.Sprintf("SR %s: a snapshot needs %s", n.SR.NameLabel, humanize.IBytes(uint64(n.Need)))
	if n.SR.PhysicalSize > 0 { // some drivers do not report it
		s += fmt.Sprintf(", %s are free", humanize.IBytes(uint64(n.Free())))
	}
	return s
}

// SpaceError is the error for SRs that have too little space for the snapshots of a
// VM's disks.
type SpaceError struct {
	Needs []SRNeed
	Err   error
}

func (e *SpaceError) Error() string {
	var parts []string
	for i := range e.Needs {
		parts = append(parts, e.Needs[i].String())
	}
	return fmt.Sprintf("%s: %v", strings.Join(parts, "; "), e.Err)
}

func (e *SpaceError) Unwrap() error { return e.Err }

// Hint names the SRs, and the missing space if it is known.
func (e *SpaceError) Hint() string {
	var parts []string
	for i := range e.Needs {
		n := &e.Needs[i]
		amount := "space"
		if missing := n.Need - n.Free(); n.SR.PhysicalSize > 0 && missing > 0 {
			amount = humanize.IBytes(uint64(missing))
		}
		parts = append(parts, fmt.Sprintf("free %s on SR %s (%s)", amount, n.SR.NameLabel, n.SR.UUID))
	}
	return strings.Join(parts, ", ") + ", or move disks off it; the space of deleted snapshots is free when they are coalesced"
}

// SpaceNeeds returns the space that a VM snapshot needs on each SR, in the order of
// its disks.
func SpaceNeeds(p *Plan) []SRNeed {
	var list []SRNeed
	for _, d := range p.Disks {
		if d.Direct {
			continue
		}
		i := slices.IndexFunc(list, func(n SRNeed) bool { return n.SR.Ref == d.SR.Ref })
		if i < 0 {
			i = len(list)
			list = append(list, SRNeed{SR: d.SR})
		}
		if d.SR.Thick() && d.VBD.CurrentlyAttached {
			list[i].Need += thickNeed(int64(d.VDI.VirtualSize))
		} else {
			list[i].Need += ThinNeed
		}
	}
	return list
}

// CheckSpace returns a *SpaceError if SRs have too little space for the snapshots of a
// plan.
func CheckSpace(p *Plan) error {
	short := slices.DeleteFunc(SpaceNeeds(p), func(n SRNeed) bool { return n.SR.PhysicalSize <= 0 || n.Free() >= n.Need })
	if len(short) == 0 {
		return nil
	}
	return &SpaceError{Needs: short, Err: job.ErrSpace}
}
