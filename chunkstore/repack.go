package chunkstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

// IndexHead is what an index object says to anyone.
type IndexHead struct {
	Name     string // in storage
	Run      RunID
	Packs    []pack.ID
	Replaces []string // names in storage
}

// headGuess is how much is read of an index object for its head, in bytes: that
// of a few hundred packs.
const headGuess = 16 << 10

// IndexHeads reads the heads of all index objects. Those that LoadIndex could
// not use are left out. Objects are read in part: their signatures were proved
// when they were taken in.
func (s *Store) IndexHeads(ctx context.Context) ([]IndexHead, error) {
	var heads []IndexHead
	for _, name := range s.index.Sources() {
		h, err := s.indexHead(ctx, name)
		if errors.Is(err, object.ErrNotFound) { // gone meanwhile, or adopted here
			continue
		}
		if err != nil {
			return nil, err
		}
		heads = append(heads, h)
	}
	return heads, nil
}

func (s *Store) indexHead(ctx context.Context, name string) (IndexHead, error) {
	h := IndexHead{Name: name}
	data, err := s.objects.Get(ctx, name, 0, headGuess)
	if errors.Is(err, object.ErrShort) {
		data, err = s.objects.Get(ctx, name, 0, -1)
	}
	if err != nil {
		return h, err
	}
	_, head, err := seal.ObjectHead(data)
	if err != nil && len(data) == headGuess {
		// A long head: the whole object, which proves itself.
		if data, err = s.objects.Get(ctx, name, 0, -1); err == nil {
			_, head, err = seal.ObjectHead(data)
		}
	}
	if err != nil {
		return h, fmt.Errorf("%s: %w", name, err)
	}
	o, err := ReadIndexHead(head)
	if err != nil {
		return h, fmt.Errorf("%s: %w", name, err)
	}
	h.Run = o.Run
	for i := range o.Packs {
		h.Packs = append(h.Packs, o.Packs[i].Pack)
	}
	for _, r := range o.Replaces {
		h.Replaces = append(h.Replaces, fmt.Sprintf("index/%x", r))
	}
	return h, nil
}

// IndexWithout gives an index object in the place of the one named, without
// the packs that gone names, to be put under the name returned; no data where
// nothing is left of it.
func (s *Store) IndexWithout(ctx context.Context, name string, gone func(pack.ID) bool) (data []byte, as string, err error) {
	o, err := s.readIndexObject(ctx, name)
	if err != nil {
		return nil, "", err
	}
	fresh := &IndexObject{Run: o.Run}
	for _, p := range o.Packs {
		if !gone(p.Pack) {
			fresh.Packs = append(fresh.Packs, p)
		}
	}
	if len(fresh.Packs) == 0 {
		return nil, "", nil
	}
	old, err := hex.DecodeString(strings.TrimPrefix(name, "index/"))
	if err != nil || len(old) != 32 {
		return nil, "", fmt.Errorf("%s: not an index object's name", name)
	}
	fresh.Replaces = [][32]byte{[32]byte(old)}
	return SealIndexObject(s.keys, fresh)
}

// Span is a stretch of a pack, from its first byte to that after its last.
type Span struct{ From, To uint32 }

// Keep names the blobs of a pack that are still needed, by where they lie.
type Keep struct {
	Pack pack.ID
	Size int64
	Live []Span // of whole blobs, ascending
}

// Add adds a blob that lies behind those added before.
func (k *Keep) Add(b *pack.Blob) {
	if n := len(k.Live); n > 0 && k.Live[n-1].To == b.Offset {
		k.Live[n-1].To += b.Stored
		return
	}
	k.Live = append(k.Live, Span{From: b.Offset, To: b.Offset + b.Stored})
}

// Repack copies blobs out of packs into new ones, as they are sealed, and puts
// these and an index object of theirs. When it returns nil all that was to be
// kept can be had without the old packs, which it leaves alone. It holds one
// pack and one pack's directory. progress counts bytes copied.
func (s *Store) Repack(ctx context.Context, run RunID, from []Keep, progress func(n int64)) (packs int, err error) {
	r := &repacker{s: s, run: run, progress: progress}
	for _, kind := range []pack.Kind{pack.Data, pack.Tree} {
		r.c = pack.NewCopier(s.keys, kind)
		for i := range from {
			if err := r.copy(ctx, kind, &from[i]); err != nil {
				return r.packs, errors.Join(err, r.cover(ctx))
			}
		}
		if err := r.put(ctx); err != nil {
			return r.packs, errors.Join(err, r.cover(ctx))
		}
	}
	return r.packs, r.cover(ctx)
}

type repacker struct {
	s        *Store
	run      RunID
	c        *pack.Copier
	done     []index.PackEntries
	doneSize int64
	packs    int
	progress func(int64)
	buf      []byte
}

// copy takes the blobs of one pack, if it is of this kind.
func (r *repacker) copy(ctx context.Context, kind pack.Kind, k *Keep) error {
	d, err := r.s.ReadDirectory(ctx, k.Pack, k.Size)
	if err != nil || d.Kind != kind {
		return err
	}
	for _, live := range k.Live {
		if err := r.span(ctx, k.Pack, d, live); err != nil {
			return err
		}
	}
	return nil
}

// span takes the blobs of one stretch.
func (r *repacker) span(ctx context.Context, from pack.ID, d *pack.Directory, live Span) error {
	for at := live.From; at < live.To; {
		// What lies together is read together.
		var blobs []*pack.Blob
		first := at
		for at < live.To {
			b, ok := d.Find(at)
			if !ok || b.Stored == 0 || b.Stored > live.To-at {
				return &pack.Error{Pack: from, Offset: int64(at), Err: seal.ErrCorrupt}
			}
			if len(blobs) > 0 && int64(at-first)+int64(b.Stored) > maxSpan {
				break
			}
			blobs = append(blobs, b)
			at += b.Stored
		}
		length := int64(at - first)
		if int64(cap(r.buf)) < length {
			r.buf = make([]byte, max(length, minSpan))
		}
		p := r.buf[:length]
		if err := r.s.objects.GetInto(ctx, from.ObjectName(), int64(first), p); err != nil {
			return err
		}
		for _, b := range blobs {
			fits, err := r.c.Add(d, b, p[:b.Stored])
			if err == nil && !fits {
				if err = r.put(ctx); err == nil {
					r.c = pack.NewCopier(r.s.keys, d.Kind)
					_, err = r.c.Add(d, b, p[:b.Stored])
				}
			}
			if err != nil {
				return &pack.Error{Pack: from, Offset: int64(b.Offset), Err: err}
			}
			p = p[b.Stored:]
		}
		if r.progress != nil {
			r.progress(length)
		}
	}
	return nil
}

func (r *repacker) put(ctx context.Context) error {
	if r.c.Count() == 0 {
		return nil
	}
	id, data, blobs, err := r.c.Finish()
	if err != nil {
		return err
	}
	if err := r.s.objects.Put(ctx, id.ObjectName(), data); err != nil {
		return err
	}
	r.done = append(r.done, packEntries(id, int64(len(data)), blobs))
	r.doneSize += int64(len(data))
	r.packs++
	if r.doneSize >= indexBytes {
		return r.cover(ctx)
	}
	return nil
}

// cover puts the index of what was put so far.
func (r *repacker) cover(ctx context.Context) error {
	if len(r.done) == 0 {
		return nil
	}
	err := r.s.PutIndex(ctx, r.run, r.done)
	if err == nil {
		r.done, r.doneSize = nil, 0
	}
	return err
}

// PutIndex makes packs part of the index, in storage and here.
func (s *Store) PutIndex(ctx context.Context, run RunID, packs []index.PackEntries) error {
	data, name, err := SealIndexObject(s.keys, &IndexObject{Run: run, Packs: packs})
	if err == nil {
		err = s.objects.Put(ctx, name, data)
	}
	if err == nil {
		err = s.index.Add(name, packs)
	}
	return err
}
