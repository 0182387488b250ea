package repo

import (
	"context"
	"errors"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

const (
	proofPrefix = "proofs/"
	// proofSize is the maximum number of packs in one proof.
	proofSize = 1 << 16
	// proofsMost is the number of proofs from which they are merged.
	proofsMost = 32
)

// proof is a list of packs that a full key has opened completely: every blob in them
// is what its ID stands for. It is valid only if a full key signed it.
type proof struct {
	Time  time.Time `json:"time"`
	Packs []byte    `json:"packs"` // IDs, 32 bytes each

	name string
}

func (p *proof) ids() (ids []pack.ID) {
	for b := p.Packs; len(b) >= len(pack.ID{}); b = b[len(pack.ID{}):] {
		ids = append(ids, pack.ID(b[:len(pack.ID{})]))
	}
	return ids
}

// PutProof publishes that the key in use, which must be a full one, has opened these
// packs completely.
func (r *Repository) PutProof(ctx context.Context, packs []pack.ID, now time.Time) error {
	if err := r.NeedsFull("prove packs"); err != nil {
		return err
	}
	for len(packs) > 0 {
		p := proof{Time: now.UTC()}
		n := min(len(packs), proofSize)
		for _, id := range packs[:n] {
			p.Packs = append(p.Packs, id[:]...)
		}
		if _, _, err := r.putObject(ctx, proofPrefix, seal.KindProof, &p); err != nil {
			return err
		}
		packs = packs[n:]
	}
	return nil
}

// proofs reads all proofs.
func (r *Repository) proofs(ctx context.Context) ([]*proof, error) {
	var names []string
	if err := object.ListOwn(ctx, r.objects, proofPrefix, func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return nil, err
	}
	var all []*proof
	for _, name := range names {
		p, err := r.readProof(ctx, name)
		switch {
		case ctx.Err() != nil || object.Retriable(err):
			return nil, err
		case errors.Is(err, seal.ErrJunk):
			r.addJunk(name, err)
		case errors.Is(err, object.ErrNotFound), errors.Is(err, seal.ErrRevoked):
		case err != nil:
			r.addProblems(Problem{Object: name, Err: err})
		case p != nil:
			all = append(all, p)
		}
	}
	return all, nil
}

// readProof reads one proof, from the cache folder if it is there. It returns nil if no
// full key signed it.
func (r *Repository) readProof(ctx context.Context, name string) (*proof, error) {
	data, err := r.cachedObject(ctx, seal.KindProof, name)
	if err != nil {
		return nil, err
	}
	p := &proof{name: name}
	o, err := r.openObject(name, data, seal.KindProof, p)
	if err != nil || !r.mayState(&o.Cert) {
		return nil, err
	}
	return p, nil
}

// loadProofs makes the store trust the packs that are proved.
func (r *Repository) loadProofs(ctx context.Context) error {
	if !r.store.Mixed() {
		return nil
	}
	all, err := r.proofs(ctx)
	if err != nil {
		return err
	}
	proved := make(map[pack.ID]bool)
	for _, p := range all {
		for _, id := range p.ids() {
			proved[id] = true
		}
	}
	r.store.SetProved(proved)
	return nil
}

// MergeProofs replaces the proofs by one, if there are many, for the packs that
// still exist. Prune calls it.
func (r *Repository) MergeProofs(ctx context.Context, exists func(pack.ID) bool, now time.Time) error {
	if !r.store.Mixed() {
		return nil
	}
	all, err := r.proofs(ctx)
	if err != nil || len(all) < proofsMost {
		return err
	}
	seen := make(map[pack.ID]bool)
	var packs []pack.ID
	for _, p := range all {
		for _, id := range p.ids() {
			if !seen[id] && exists(id) {
				seen[id] = true
				packs = append(packs, id)
			}
		}
	}
	if err := r.PutProof(ctx, packs, now); err != nil {
		return err
	}
	for _, p := range all {
		if err := r.objects.Delete(ctx, p.name); err != nil {
			return err
		}
	}
	return nil
}
