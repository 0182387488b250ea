package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/internal/disk"
	"xenkeep/repo"
)

type statsOptions struct {
	repository repositoryFlags
	output     outputFlags
}

// statsLine is what stats prints with --json. Sizes are in bytes.
type statsLine struct {
	Type      string `json:"type"` // "stats"
	Snapshots int    `json:"snapshots"`
	VMs       int    `json:"vms"`
	Disks     int    `json:"disks"`
	Packs     int    `json:"packs"`
	Logical   int64  `json:"bytes_logical"`      // of all disks of all snapshots
	Data      int64  `json:"bytes_data"`         // of that, what is not zero
	Unique    int64  `json:"bytes_deduplicated"` // of that, each chunk once
	Stored    int64  `json:"bytes_stored"`       // all objects of the repository
}

func newStatsCommand() *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show logical, deduplicated and stored bytes",
		Long: `Show how much the snapshots hold and what it takes: the sizes of all disks, the part
of it that is data, that part with what is equal counted once, and what is stored.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStats(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	return cmd
}

func runStats(cmd *cobra.Command, o *statsOptions) error {
	ctx := cmd.Context()
	r, err := o.repository.open(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	tellProblems(cmd.ErrOrStderr(), r.Problems())
	snapshots, bad, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	tellProblems(cmd.ErrOrStderr(), bad)
	s, err := measure(ctx, r, snapshots)
	if err != nil {
		return err
	}
	if o.output.json {
		err = writeLine(cmd.OutOrStdout(), s)
	} else {
		t := newTable(cmd.OutOrStdout())
		t.row("snapshots", fmt.Sprintf("%d, of %s, with %s", s.Snapshots, plural(s.VMs, "VM"), plural(s.Disks, "disk")))
		t.row("logical", size(s.Logical), "all disks of all snapshots")
		t.row("data", size(s.Data), "of that, what is not zero")
		t.row("deduplicated", size(s.Unique), "of that, what differs"+ratio(s.Data, s.Unique))
		t.row("stored", size(s.Stored), fmt.Sprintf("compressed and encrypted, in %s%s", plural(s.Packs, "pack"), ratio(s.Unique, s.Stored)))
		err = t.flush()
	}
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("%s cannot be read and is not counted: %w", plural(len(bad), "snapshot"), errDamage)
	}
	return err
}

func ratio(before, after int64) string {
	if before <= 0 || after <= 0 {
		return ""
	}
	return fmt.Sprintf(" (%.2f of the above)", float64(after)/float64(before))
}

// measure walks the trees of all snapshots, each shared part of them once. It
// holds 8 to 16 bytes for each chunk there is.
func measure(ctx context.Context, r *repo.Repository, snapshots []*repo.Snapshot) (*statsLine, error) {
	s := &statsLine{Type: "stats", Snapshots: len(snapshots)}
	m := measurement{r: r, nodes: make(map[chunk.ID]int64), lists: make(map[chunk.ID]int64)}
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
	s.VMs, s.Unique = len(vms), m.unique
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
	chunks       idSet
	unique       int64
}

// disk gives the bytes of data of a disk.
func (m *measurement) disk(ctx context.Context, root chunk.ID) (int64, error) {
	p, err := m.r.Store().Load(ctx, chunk.Root, root)
	if err != nil {
		return 0, err
	}
	rn, err := repo.DecodeRoot(p)
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
	p, err := m.r.Store().Load(ctx, chunk.Node, id)
	if err != nil {
		return 0, err
	}
	node, err := repo.DecodeNode(p)
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
	lists := make([][]byte, len(ids))
	var mu sync.Mutex
	if err := m.r.Store().Fetch(ctx, chunk.List, ids, func(i int, p []byte) error {
		mu.Lock()
		defer mu.Unlock()
		lists[i] = bytes.Clone(p)
		return nil
	}); err != nil {
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
			if m.chunks.add(p.ID) {
				m.unique += int64(p.Length)
			}
		}
		m.lists[ids[i]] = n
		sum += n * wanted[ids[i]]
	}
	return sum, nil
}

// idSet is a set of IDs by their first 8 bytes, which are as good as random:
// an open table, half to three quarters full.
type idSet struct {
	table []uint64
	n     int
}

// add tells whether id was not in the set.
func (s *idSet) add(id chunk.ID) bool {
	if 4*(s.n+1) > 3*len(s.table) {
		old := s.table
		s.table, s.n = make([]uint64, max(1024, 2*len(old))), 0
		for _, v := range old {
			if v != 0 {
				s.put(v)
			}
		}
	}
	return s.put(max(1, binary.LittleEndian.Uint64(id[:]))) // zero is an empty place
}

func (s *idSet) put(v uint64) bool {
	mask := uint64(len(s.table) - 1)
	for i := v & mask; ; i = (i + 1) & mask {
		switch s.table[i] {
		case v:
			return false
		case 0:
			s.table[i] = v
			s.n++
			return true
		}
	}
}
