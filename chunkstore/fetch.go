package chunkstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

const (
	// maxGap is the largest gap of unneeded bytes that is read, rather than
	// skipped with a second request.
	maxGap = 64 << 10
	// maxSpan is the maximum number of bytes that one request reads. A Fetch
	// holds this much memory for each of its readers.
	maxSpan = 4 << 20
	// minSpan is the size, in bytes, up to which requests are always combined,
	// because a smaller one is not worth its round trip. Between minSpan and
	// maxSpan, spans are small enough that all readers have work until the end.
	minSpan = 1 << 20
)

// Fetch reads the pieces with these IDs, all of one kind, and calls fn for
// each index of ids with its plain bytes, which are verified against the ID. Fn
// is called concurrently from several goroutines, in the order of storage, and
// must not retain p. Blobs that are adjacent in storage are read together.
// Fetch ends with the first error.
//
// Pipeline: one goroutine sends the spans through next, which is unbuffered and which
// it closes at the end, to the readers; each reads a span and calls fn with its blobs.
// The number of readers, each with one read buffer, bounds the memory. After an error,
// all stop through ctx.
func (s *Store) Fetch(ctx context.Context, k chunk.Kind, ids []chunk.ID, fn func(i int, p []byte) error) error {
	spans, err := s.plan(ctx, k, ids)
	if err != nil {
		return err
	}
	f := &fetch{s: s, kind: k, ids: ids, fn: fn}
	readers := min(len(spans), max(runtime.GOMAXPROCS(0), min(s.objects.Traits().Parallel, 8)))
	if readers <= 1 {
		r := f.newReader()
		defer r.release()
		for _, sp := range spans {
			if err := r.span(ctx, sp, true); err != nil {
				return err
			}
		}
		return nil
	}
	next := make(chan span)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(next)
		for _, sp := range spans {
			select {
			case next <- sp:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range readers {
		g.Go(func() error {
			r := f.newReader()
			defer r.release()
			for sp := range next {
				if err := r.span(ctx, sp, true); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// Load reads one piece.
func (s *Store) Load(ctx context.Context, k chunk.Kind, id chunk.ID) ([]byte, error) {
	var out []byte
	err := s.Fetch(ctx, k, []chunk.ID{id}, func(_ int, p []byte) error {
		out = bytes.Clone(p)
		return nil
	})
	return out, err
}

// fetch is the state of one call of Fetch.
type fetch struct {
	s    *Store
	kind chunk.Kind
	ids  []chunk.ID
	fn   func(i int, p []byte) error
}

// wanted is one index of ids and the location of its blob.
type wanted struct {
	i  int
	at index.Location
}

// span is a range of one pack that contains wanted blobs, in ascending order.
type span struct {
	pack   pack.ID
	offset int64
	length int64
	blobs  []wanted
}

func (s *Store) plan(ctx context.Context, k chunk.Kind, ids []chunk.ID) ([]span, error) {
	found := make([]wanted, len(ids))
	for i, id := range ids {
		at, ok := s.index.Lookup(index.PrefixOf(id))
		if !ok {
			places := s.index.Locate(index.PrefixOf(id), nil) // perhaps in a hidden pack
			if len(places) == 0 {
				more, err := s.LoadOrphans(ctx)
				if err != nil {
					return nil, err
				}
				if more {
					places = s.index.Locate(index.PrefixOf(id), nil)
				}
			}
			if len(places) == 0 {
				return nil, &BlobError{Kind: k, ID: id, Err: ErrMissing}
			}
			at = places[0]
		}
		found[i] = wanted{i: i, at: at}
	}
	slices.SortFunc(found, func(a, b wanted) int {
		if c := bytes.Compare(a.at.Pack[:], b.at.Pack[:]); c != 0 {
			return c
		}
		return cmp.Compare(a.at.Offset, b.at.Offset)
	})
	total := 0
	for _, w := range found {
		total += int(w.at.Length)
	}
	limit := int64(min(max(total/(4*runtime.GOMAXPROCS(0)), minSpan), maxSpan))
	var spans []span
	for start := 0; start < len(found); {
		first := found[start].at
		sp := span{pack: first.Pack, offset: int64(first.Offset), length: int64(first.Length)}
		end := start + 1
		for ; end < len(found); end++ {
			w := found[end].at
			stop := max(sp.offset+sp.length, int64(w.Offset)+int64(w.Length))
			if w.Pack != first.Pack || int64(w.Offset) > sp.offset+sp.length+maxGap || stop-sp.offset > limit {
				break
			}
			sp.length = stop - sp.offset
		}
		sp.blobs = found[start:end]
		spans = append(spans, sp)
		start = end
	}
	return spans, nil
}

// reader is the state of one goroutine of a fetch, with its buffers.
type reader struct {
	*fetch
	of     *Store // the store of the hasher: readers are reused, also by other stores
	hasher *chunk.Hasher
	stored []byte
	plain  []byte
}

var readers = sync.Pool{New: func() any { return &reader{plain: make([]byte, 0, pack.GroupSize)} }}

func (f *fetch) newReader() *reader {
	r := readers.Get().(*reader)
	if r.of != f.s {
		r.of, r.hasher = f.s, f.s.hasher.Clone()
	}
	r.fetch = f
	return r
}

func (r *reader) release() {
	r.fetch = nil
	readers.Put(r)
}

// span reads the blobs of a span. If older is true and the content of the pack
// turns out to be damaged, span looks for an intact copy or version of the
// pack.
func (r *reader) span(ctx context.Context, sp span, older bool) error {
	fail := func(i int, err error) error {
		return &BlobError{Kind: r.kind, ID: r.ids[sp.blobs[i].i], Pack: sp.pack, Err: err}
	}
	from, done := r.s.ranges(ctx, r.kind, sp.pack)
	defer done()
	d, err := r.s.directory(ctx, from, sp.pack)
	if err == nil && sp.length > maxSpan {
		// A single large blob: the index must not make us allocate its length
		// unless the pack agrees.
		if b, ok := d.Find(sp.blobs[0].at.Offset); !ok || int64(b.Stored) != sp.length {
			err = fmt.Errorf("index and table of contents differ at %#x: %w", sp.offset, seal.ErrCorrupt)
		}
	}
	if err == nil {
		if int64(cap(r.stored)) < sp.length {
			r.stored = make([]byte, max(sp.length, 1<<20))
		}
		err = from.GetInto(ctx, sp.pack.ObjectName(), sp.offset, r.stored[:sp.length])
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, seal.ErrNoDataKey) {
			return err
		}
		return r.elsewhere(ctx, sp.blobs, fail(0, err))
	}
	for first := 0; first < len(sp.blobs); {
		// Collect all wanted pieces of one blob, which is opened only once.
		at := sp.blobs[first].at
		to := first + 1
		for to < len(sp.blobs) && sp.blobs[to].at.Offset == at.Offset {
			to++
		}
		start := int64(at.Offset) - sp.offset
		b, plain, err := r.open(d, at, r.stored[start:start+int64(at.Length)])
		for i := first; i < to; i++ {
			w := sp.blobs[i]
			var p []byte
			perr := err
			if perr == nil {
				p, perr = r.piece(b, plain, r.ids[w.i])
			}
			if perr != nil && older && errors.Is(perr, seal.ErrCorrupt) && r.s.recoverPack(ctx, sp.pack) {
				sp.blobs = sp.blobs[i:]
				return r.span(ctx, sp, false)
			}
			if perr != nil {
				if err := r.elsewhere(ctx, sp.blobs[i:i+1], fail(i, perr)); err != nil {
					return err
				}
				continue
			}
			if err := r.fn(w.i, p); err != nil {
				return err
			}
		}
		first = to
	}
	return nil
}

// open decrypts one blob. Its result is valid until the next call.
func (r *reader) open(d *pack.Directory, at index.Location, stored []byte) (*pack.Blob, []byte, error) {
	b, ok := d.Find(at.Offset)
	if !ok || b.Stored != at.Length {
		return nil, nil, fmt.Errorf("index and table of contents differ at %#x: %w", at.Offset, seal.ErrCorrupt)
	}
	plain, err := d.Open(r.plain, b, stored)
	if err != nil {
		return nil, nil, err
	}
	if cap(plain) > cap(r.plain) {
		r.plain = plain
	}
	return b, plain, nil
}

// piece returns a piece of its blob's plain bytes and verifies it against the
// ID.
func (r *reader) piece(b *pack.Blob, plain []byte, id chunk.ID) ([]byte, error) {
	from, to, ok := b.Find(id)
	if !ok || b.Kind != r.kind {
		return nil, fmt.Errorf("index and table of contents differ at %#x: %w", b.Offset, seal.ErrCorrupt)
	}
	p := plain[from:to]
	return p, CheckID(r.hasher, r.kind, id, p)
}

// CheckID returns an error unless id is the ID of p.
func CheckID(h *chunk.Hasher, k chunk.Kind, id chunk.ID, p []byte) error {
	if h.Sum(k, p) != id {
		return fmt.Errorf("content does not fit its ID: %w", seal.ErrCorrupt)
	}
	return nil
}

// elsewhere reads blobs from other packs that contain them too. If no copy of
// one of them is readable, it returns cause.
func (r *reader) elsewhere(ctx context.Context, blobs []wanted, cause error) error {
	for _, w := range blobs {
		id := r.ids[w.i]
		done := false
		for _, at := range r.s.index.Locate(index.PrefixOf(id), nil) {
			if at == w.at {
				continue
			}
			d, err := r.s.directory(ctx, r.s.objects, at.Pack)
			if err != nil {
				continue
			}
			if b, ok := d.Find(at.Offset); !ok || b.Stored != at.Length {
				continue
			}
			stored := make([]byte, at.Length)
			if err := r.s.objects.GetInto(ctx, pack.ID(at.Pack).ObjectName(), int64(at.Offset), stored); err != nil {
				continue
			}
			other := reader{fetch: r.fetch, hasher: r.hasher} // r's buffer is in use
			b, plain, err := other.open(d, at, stored)
			if err != nil {
				continue
			}
			p, err := other.piece(b, plain, id)
			if err != nil {
				continue
			}
			if err := r.fn(w.i, p); err != nil {
				return err
			}
			done = true
			break
		}
		if !done {
			return cause
		}
	}
	return nil
}
