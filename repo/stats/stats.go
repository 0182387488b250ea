// Package stats measures the data of snapshots and the space that they use.
package stats

import (
	"context"
	"fmt"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/repo"
	"xenkeep/repo/tree"
)

// Stats contains the figures of a repository, sizes in bytes;
// docs/reference/json.md describes their JSON.
type Stats struct {
	Snapshots int   `json:"snapshots"`
	VMs       int   `json:"vms"`
	Disks     int   `json:"disks"`
	Packs     int   `json:"packs"`
	Logical   int64 `json:"bytes_logical"`      // of all disks of all snapshots
	Data      int64 `json:"bytes_data"`         // of that, the bytes that are not zero
	Unique    int64 `json:"bytes_deduplicated"` // of that, each chunk once
	Estimated bool  `json:"estimated"`          // Unique is estimated from a part of the chunks
	Stored    int64 `json:"bytes_stored"`       // all objects of the repository
}

// Measure walks the trees of snapshots, each shared part once. The index must have
// been loaded. It uses some 60 bytes of memory for each block list, and at most 128
// MiB for the chunks: of more than eleven million chunks only a part is counted,
// and the rest is estimated from it.
func Measure(ctx context.Context, r *repo.Repository, snapshots []*repo.Snapshot) (*Stats, error) {
	s := &Stats{Snapshots: len(snapshots)}
	m := measurement{r: r, nodes: make(map[tree.Key]int64), lists: make(map[chunk.ID]int64), chunks: newIDSet(maxIDs)}
	vms := make(map[[3]string]bool)
	for _, snap := range snapshots {
		vms[[3]string{snap.Origin, snap.Pool.UUID, snap.VM.UUID}] = true
		for i := range snap.Disks {
			d := &snap.Disks[i]
			data, err := m.disk(ctx, chunk.ID(d.Root))
			if err != nil {
				return nil, fmt.Errorf("snapshot %s, disk %s: %w", snap.Short(), d.Device, err)
			}
			s.Disks++
			s.Logical += d.Size
			s.Data += data
		}
	}
	s.VMs, s.Unique, s.Estimated = len(vms), m.chunks.bytes(), m.chunks.skip > 0
	err := r.Objects().List(ctx, "", func(i object.Info) error {
		s.Stored += i.Size
		if strings.HasPrefix(i.Name, "packs/") {
			s.Packs++
		}
		return nil
	})
	return s, err
}

type measurement struct {
	r      *repo.Repository
	nodes  map[tree.Key]int64 // bytes of data below the nodes that were walked
	lists  map[chunk.ID]int64 // bytes of data in the block lists that were walked
	chunks *idSet
}

// disk returns the bytes of data of a disk.
func (m *measurement) disk(ctx context.Context, root chunk.ID) (int64, error) {
	rn, err := tree.ReadRoot(ctx, m.r.Store(), root)
	if err != nil {
		return 0, err
	}
	var sum, below int64               // of the disk, and of the current node
	wanted := make(map[chunk.ID]int64) // how often the node names a list that was not walked before
	err = tree.Walk(ctx, m.r.Store(), rn, tree.Visitor{
		Enter: func(p tree.Part) (bool, error) {
			if p.Kind == chunk.Node {
				n, known := m.nodes[p.Key()]
				sum += n
				return !known, nil
			}
			if n, known := m.lists[p.ID]; known {
				below += n
				return false, nil
			}
			wanted[p.ID]++
			return wanted[p.ID] == 1, nil
		},
		List: func(p tree.Part, pieces []tree.Piece) error {
			var n int64
			for _, piece := range pieces {
				if !piece.IsZero() {
					n += int64(piece.Length)
					m.chunks.add(piece.ID, piece.Length)
				}
			}
			m.lists[p.ID] = n
			below += n * wanted[p.ID]
			return nil
		},
		Leave: func(node tree.Part) error {
			m.nodes[node.Key()] = below
			sum, below = sum+below, 0
			clear(wanted)
			return nil
		},
	})
	return sum, err
}
