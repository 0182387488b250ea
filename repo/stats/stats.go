// Package stats counts what snapshots hold and what that takes.
package stats

import (
	"context"
	"fmt"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/internal/disk"
	"xenkeep/repo"
)

// Stats are the figures of a repository, sizes in bytes; docs/reference.md has
// their JSON.
type Stats struct {
	Snapshots int   `json:"snapshots"`
	VMs       int   `json:"vms"`
	Disks     int   `json:"disks"`
	Packs     int   `json:"packs"`
	Logical   int64 `json:"bytes_logical"`      // of all disks of all snapshots
	Data      int64 `json:"bytes_data"`         // of that, what is not zero
	Unique    int64 `json:"bytes_deduplicated"` // of that, each chunk once
	Estimated bool  `json:"estimated"`          // Unique is, from a part of the chunks
	Stored    int64 `json:"bytes_stored"`       // all objects of the repository
}

// Measure walks the trees of snapshots, each shared part of them once. The index
// must have been loaded. It holds some 60 bytes for each block list there is,
// and 128 MiB at most for the chunks: of more than eleven millions only a part
// is counted, and the rest estimated from it.
func Measure(ctx context.Context, r *repo.Repository, snapshots []*repo.Snapshot) (*Stats, error) {
	s := &Stats{Snapshots: len(snapshots)}
	m := measurement{r: r, nodes: make(map[chunk.ID]int64), lists: make(map[chunk.ID]int64), chunks: newIDSet(maxIDs)}
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
	r            *repo.Repository
	nodes, lists map[chunk.ID]int64 // bytes of data below those walked
	chunks       *idSet
}

// disk gives the bytes of data of a disk.
func (m *measurement) disk(ctx context.Context, root chunk.ID) (int64, error) {
	rn, err := m.r.ReadRoot(ctx, root)
	if err != nil {
		return 0, err
	}
	var sum int64
	for i, id := range rn.Nodes {
		if id.IsZero() {
			continue
		}
		n, ok := m.nodes[id]
		if !ok {
			if n, err = m.node(ctx, id, int64(i)*repo.NodeBlocks, rn.Size); err != nil {
				return 0, err
			}
			m.nodes[id] = n
		}
		sum += n
	}
	return sum, nil
}

func (m *measurement) node(ctx context.Context, id chunk.ID, first, diskSize int64) (int64, error) {
	node, err := m.r.ReadNode(ctx, id)
	if err != nil {
		return 0, err
	}
	var sum int64
	var ids []chunk.ID
	var lengths []int
	wanted := make(map[chunk.ID]int64) // how often, in this node
	for j, list := range node {
		block := first + int64(j)
		if list.IsZero() || block >= disk.Blocks(diskSize) {
			continue
		}
		if n, ok := m.lists[list]; ok {
			sum += n
			continue
		}
		if wanted[list]++; wanted[list] == 1 {
			ids, lengths = append(ids, list), append(lengths, repo.BlockLength(diskSize, block))
		}
	}
	lists, err := m.r.ReadLists(ctx, ids)
	if err != nil {
		return 0, err
	}
	var pieces []repo.Piece
	for i, list := range lists {
		if pieces, err = repo.DecodeList(pieces[:0], list, lengths[i]); err != nil {
			return 0, err
		}
		var n int64
		for _, p := range pieces {
			if p.IsGap() {
				continue
			}
			n += int64(p.Length)
			m.chunks.add(p.ID, p.Length)
		}
		m.lists[ids[i]] = n
		sum += n * wanted[ids[i]]
	}
	return sum, nil
}
