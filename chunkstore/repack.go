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

// IndexHead is the part of an index object that is readable without a key.
type IndexHead struct {
	Name     string // in storage
	Run      RunID
	Packs    []pack.ID
	Believed []pack.ID // of Packs, those about which the object is believed
	Replaces []string  // names in storage

	writer      seal.WriterID
	disbelieved int // of Packs, those that another key wrote
}

// headGuess is how many bytes of an index object are read first for its head.
// The head of an object with a few hundred packs fits.
const headGuess = 16 << 10

// IndexHeads reads the heads of all index objects, except those that LoadIndex
// could not use. Objects are read only in part, because their signatures were
// verified when they were added to the index.
func (s *Store) IndexHeads(ctx context.Context) ([]IndexHead, error) {
	var heads []IndexHead
	for _, name := range s.index.Sources() {
		h, err := s.indexHead(ctx, name)
		if errors.Is(err, object.ErrNotFound) { // deleted meanwhile, or adopted by this process
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
		// The head is longer.
		if data, err = objectStart(ctx, s.objects, name); err == nil {
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
	cert := seal.ObjectCert(data)
	h.writer = cert.Writer()
	verify := s.Mixed() && cert.Role() != seal.Full && !s.believeAll
	for i := range o.Packs {
		id := pack.ID(o.Packs[i].Pack)
		h.Packs = append(h.Packs, id)
		w, known := s.authors.of(id)
		switch {
		case !verify || known && w.writer == h.writer:
			h.Believed = append(h.Believed, id)
		case known || s.Unusable(id) != nil:
			h.disbelieved++
		}
	}
	for _, r := range o.Replaces {
		h.Replaces = append(h.Replaces, fmt.Sprintf("index/%x", r))
	}
	return h, nil
}

// IndexWithout returns an index object that replaces the one called name,
// without the packs for which the function returns true. The caller must put
// data under the name as. Data is nil if no packs remain.
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

// Span is a range of a pack: From is the offset of its first byte, To the
// offset after its last byte.
type Span struct{ From, To uint32 }

// Keep lists the blobs of a pack that are still needed, by their position.
type Keep struct {
	Pack pack.ID
	Size int64
	Live []Span // ranges of complete blobs, ascending
}

// Add adds a blob. Its offset must be greater than those of the blobs added
// before.
func (k *Keep) Add(b *pack.Blob) {
	if n := len(k.Live); n > 0 && k.Live[n-1].To == b.Offset {
		k.Live[n-1].To += b.Stored
		return
	}
	k.Live = append(k.Live, Span{From: b.Offset, To: b.Offset + b.Stored})
}

// Repack copies sealed blobs from packs to new packs, without decrypting them,
// and puts the new packs and index objects that cover them. If it returns nil,
// all blobs in from can be read without the old packs, which Repack does not
// delete. It holds one pack and the directory of one pack in memory. Repack
// calls progress with the number of bytes copied.
func (s *Store) Repack(ctx context.Context, run RunID, from []Keep, progress func(n int64)) (packs int, err error) {
	r := &repacker{s: s, run: run, progress: progress}
	for _, kind := range []pack.Kind{pack.Data, pack.Tree} {
		r.c = pack.NewCopier(s.keys, kind, s.firstWriters)
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

// copy copies the blobs of one pack, if the pack is of this kind.
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

// span copies the blobs of one range.
func (r *repacker) span(ctx context.Context, from pack.ID, d *pack.Directory, live Span) error {
	for at := live.From; at < live.To; {
		// Adjacent blobs are read together.
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
					r.c = pack.NewCopier(r.s.keys, d.Kind, r.s.firstWriters)
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
	r.s.Own(id)
	r.done = append(r.done, packEntries(id, int64(len(data)), blobs))
	r.doneSize += int64(len(data))
	r.packs++
	if r.doneSize >= indexBytes {
		return r.cover(ctx)
	}
	return nil
}

// cover puts the index of the packs that were put so far.
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

// PutIndex adds packs to the index, in storage and on this machine.
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
