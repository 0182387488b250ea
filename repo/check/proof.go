package check

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"xenkeep/chunkstore/pack"

	"github.com/google/renameio/v2"
)

// proofs records when each pack was last read, and whether it was found intact or
// damaged. The file is in the cache folder of this machine: a check changes nothing
// in the repository, and needs no right to do so. If the file is lost, all packs
// count as never read.
//
// The file is "XKPF", a version byte, and for each pack, sorted by ID: ID (32
// bytes), seconds since 1970 (8, big-endian), 1 if it was found damaged.
type proofs struct {
	file string // empty: nothing is stored

	mu    sync.Mutex
	known map[pack.ID]proof
	fresh map[pack.ID]proof // those of this check
}

type proof struct {
	at  int64
	bad bool
}

const (
	proofMagic = "XKPF\x01"
	proofSize  = 32 + 8 + 1
)

// openProofs reads the proofs from a repository's cache folder.
func openProofs(cacheDir string) *proofs {
	p := &proofs{fresh: make(map[pack.ID]proof)}
	if cacheDir != "" {
		p.file = filepath.Join(cacheDir, "proofs")
	}
	p.known = readProofs(p.file)
	return p
}

// readProofs treats a damaged file as missing, because it is only a cache.
func readProofs(file string) map[pack.ID]proof {
	known := make(map[pack.ID]proof)
	data, err := os.ReadFile(file)
	if err != nil || !bytes.HasPrefix(data, []byte(proofMagic)) || (len(data)-len(proofMagic))%proofSize != 0 {
		return known
	}
	for data = data[len(proofMagic):]; len(data) > 0; data = data[proofSize:] {
		known[pack.ID(data[:32])] = proof{at: int64(binary.BigEndian.Uint64(data[32:])), bad: data[40] == 1}
	}
	return known
}

// when returns the time by which packs are ordered: the time of the last proof or,
// for a pack without one, the time of the upload shifted to long before all proofs.
func (p *proofs) when(id pack.ID, uploaded time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, ok := p.known[id]; ok {
		return time.Unix(k.at, 0)
	}
	return uploaded.AddDate(-1000, 0, 0)
}

// add records that a pack was read.
func (p *proofs) add(id pack.ID, now time.Time, bad bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fresh[id] = proof{at: now.Unix(), bad: bad}
}

// bad returns the packs that were found damaged when they were last read.
func (p *proofs) bad() []pack.ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []pack.ID
	for id, k := range p.known {
		if k.bad {
			ids = append(ids, id)
		}
	}
	return ids
}

// save writes the proofs of the packs that exist, merged with those that another
// check has saved meanwhile.
func (p *proofs) save(there func(pack.ID) bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.fresh) == 0 {
		return nil
	}
	if p.file != "" {
		p.known = readProofs(p.file)
	}
	for id, k := range p.fresh {
		if k.at >= p.known[id].at {
			p.known[id] = k
		}
	}
	clear(p.fresh)
	ids := make([]pack.ID, 0, len(p.known))
	for id := range p.known {
		if there(id) {
			ids = append(ids, id)
		} else {
			delete(p.known, id)
		}
	}
	if p.file == "" {
		return nil
	}
	slices.SortFunc(ids, func(a, b pack.ID) int { return bytes.Compare(a[:], b[:]) })
	data := append(make([]byte, 0, len(proofMagic)+len(ids)*proofSize), proofMagic...)
	for _, id := range ids {
		k := p.known[id]
		flag := byte(0)
		if k.bad {
			flag = 1
		}
		data = append(data, id[:]...)
		data = binary.BigEndian.AppendUint64(data, uint64(k.at))
		data = append(data, flag)
	}
	err := os.MkdirAll(filepath.Dir(p.file), 0o700)
	if err == nil {
		err = renameio.WriteFile(p.file, data, 0o600)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil // a cache that cannot be written is not used
	}
	return err
}

// oldest returns the time of the oldest proof of these packs, and the number of
// packs that were never read.
func (p *proofs) oldest(packs map[pack.ID]stored) (at *time.Time, never int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var min int64
	for id := range packs {
		k, ok := p.known[id]
		switch {
		case !ok:
			never++
		case min == 0 || k.at < min:
			min = k.at
		}
	}
	if min == 0 {
		return nil, never
	}
	t := time.Unix(min, 0).UTC()
	return &t, never
}
