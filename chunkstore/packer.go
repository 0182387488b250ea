package chunkstore

import (
	"context"
	"fmt"
	"sync"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

// packer fills the open pack of one kind, and sends packs that are full.
type packer struct {
	w    *Writer
	kind pack.Kind

	mu   sync.Mutex // guards open; held while space for a blob is reserved, but not while it is filled
	open *openPack  // nil between packs
}

// openPack is a pack to which blobs are being added.
type openPack struct {
	b      *pack.Builder
	buf    []byte
	blobs  sync.WaitGroup // reserved and not yet filled
	ids    []chunk.ID
	target int // the size at which it is full
	kind   pack.Kind
}

// reserve reserves space in the open pack for a blob of n encoded bytes. If the
// open pack lacks that space, it is sent first. reserve waits while all pack
// buffers are in use by uploads.
func (p *packer) reserve(kind chunk.Kind, e seal.Encoding, pieces []pack.Entry, n int) (*openPack, pack.Reservation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.open == nil {
			var err error
			if p.open, err = p.w.begin(p.kind, n); err != nil {
				return nil, pack.Reservation{}, err
			}
		}
		o := p.open
		slot, ok := o.b.Reserve(kind, e, pieces, n, o.target)
		if ok {
			for _, piece := range pieces {
				o.ids = append(o.ids, piece.ID)
			}
			o.blobs.Add(1)
			return o, slot, nil
		}
		if n > pack.TargetSize {
			return nil, pack.Reservation{}, fmt.Errorf("%v of %d bytes does not fit a pack", kind, n)
		}
		p.send()
	}
}

// flush sends the open pack, if there is one.
func (p *packer) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open != nil {
		p.send()
	}
}

// send sends the open pack. The caller must hold mu.
func (p *packer) send() {
	p.w.send(p.open)
	p.open = nil
}

// size returns the bytes in the open pack.
func (p *packer) size() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		return 0
	}
	return int64(p.open.b.Size())
}

// begin waits for a buffer and begins a pack in it, with room for at least one
// blob of n encoded bytes.
func (w *Writer) begin(k pack.Kind, n int) (*openPack, error) {
	var buf []byte
	select {
	case buf = <-w.buffers:
	case <-w.stopped:
		return nil, w.failure()
	}
	w.mu.Lock()
	target := int(min(max(w.stats.Stored/packFraction, minPack), pack.TargetSize))
	w.mu.Unlock()
	// Buffers grow with the packs, by doubling, so that small runs need little
	// memory.
	if need := max(target, min(n, pack.TargetSize)); cap(buf) < need+packRoom {
		size := minPack
		for size < need {
			size *= 2
		}
		buf = make([]byte, 0, min(size, pack.TargetSize)+packRoom)
	}
	b, err := pack.NewBuilder(w.s.keys, k, buf)
	if err != nil {
		return nil, err
	}
	return &openPack{b: b, buf: buf, target: target, kind: k}, nil
}

// send finishes and uploads a pack in a goroutine of its own. The number of
// buffers bounds the number of these goroutines. send is called while the
// packer's mu is held, so that packs are sent in the order in which they became
// full; it does not block.
func (w *Writer) send(f *openPack) {
	w.inFlight.Add(1)
	w.start(func(ctx context.Context) error {
		defer w.inFlight.Done()
		err := w.upload(ctx, f)
		if err != nil {
			w.mu.Lock()
			if w.err == nil {
				w.err = err
			}
			w.mu.Unlock()
			return err
		}
		w.buffers <- f.buf
		return w.indexIfDue(ctx)
	})
}

// failure returns the reason for which the run has ended.
func (w *Writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	return context.Canceled
}

func (w *Writer) upload(ctx context.Context, f *openPack) error {
	f.blobs.Wait()
	id, data, blobs, err := f.b.Finish()
	if err != nil {
		return err
	}
	if err := w.s.objects.Put(ctx, id.ObjectName(), data); err != nil {
		return err
	}
	if c := w.s.trees; c != nil && f.kind == pack.Tree {
		c.put(id, data) // the next run reads it as its base
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done.add(finishedPack{entries: packEntries(id, int64(len(data)), blobs), ids: f.ids})
	w.s.Own(id)
	w.stats.Packs++
	w.stats.Stored += int64(len(data))
	w.packs.made[id] = struct{}{}
	return nil
}
