package sr

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"xenkeep/vhd"
)

// newUUID returns a random unique id for a VHD. The system's random source does
// not fail.
func newUUID() vhd.UUID {
	id, _ := vhd.NewUUID(rand.Reader)
	return id
}

// layer represents one VHD file (or raw file, or logical volume) of the SR.
type layer struct {
	sr *SR
	// path is the sparse file that holds the written data, at their virtual
	// offsets; the first write creates it.
	path string
	// Guarded by sr.mu: the file's name on the SR, the UUID in its footer, its
	// virtual size, and the file below it.
	name   string
	footer vhd.UUID
	size   int64
	parent *layer
	// garbage fills unwritten space instead of zeros, if there is no image.
	garbage bool
	// image holds data below the written ones; nil for most layers.
	image *image

	// blocks counts allocated blocks, including those of the image.
	blocks atomic.Int64

	// mu guards the following fields; it is locked from the top of a chain
	// downwards.
	mu    sync.RWMutex
	file  *os.File
	own   presence // the pages written to file
	mtime time.Time
	users int // number of exports that read the layer
	dead  bool
}

func (l *layer) depth() int {
	n := 0
	for ; l != nil; l = l.parent {
		n++
	}
	return n
}

// allocated returns the number of blocks that the layer holds.
func (l *layer) allocated() int64 { return l.blocks.Load() }

// hasBlock reports whether the layer's own file has the block in its BAT.
func (l *layer) hasBlock(block int64) bool {
	return l.own.some.has(block) || l.image != nil && l.image.have.some.has(block)
}

// modified returns the time of the last write to the layer's file.
func (l *layer) modified() time.Time {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mtime
}

// use pins the layer: GC skips it, and its data outlive its volume.
func (l *layer) use() {
	l.mu.Lock()
	l.users++
	l.mu.Unlock()
}

func (l *layer) unuse() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users--
	if l.dead && l.users == 0 {
		return l.remove()
	}
	return nil
}

func (l *layer) inUse() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.users > 0
}

// discard removes the layer's data as soon as they are no longer in use.
func (l *layer) discard() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	if l.users > 0 {
		return nil
	}
	return l.remove()
}

func (l *layer) remove() error {
	var err error
	if l.image != nil {
		err = l.image.file.Close()
		l.image = nil
	}
	if l.file != nil {
		err = errors.Join(err, l.file.Close(), os.Remove(l.path))
		l.file = nil
	}
	l.own = presence{}
	return err
}

// readAt reads through the chain.
func (l *layer) readAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read: negative offset")
	}
	done := 0
	for done < len(p) && off < l.size {
		block := off / blockSize
		end := min(off+int64(len(p)-done), (block+1)*blockSize, l.size)
		n := int(end - off)
		if err := l.readBlock(p[done:done+n], block, off-block*blockSize, nil); err != nil {
			return done, err
		}
		done, off = done+n, end
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readBlock fills dst with the data at byte at of a block, seen from l. Data of
// skip, which may be nil, are omitted.
func (l *layer) readBlock(dst []byte, block, at int64, skip *layer) error {
	need := pageRange(int(at/pageSize), int((at+int64(len(dst))+pageSize-1)/pageSize))
	start := block * blockSize
	bottom := l
	for x := l; x != nil && !need.empty(); x = x.parent {
		bottom = x
		if x == skip {
			if x.image != nil {
				if err := readPages(x.image, &need, x.image.have.get(block), dst, start, at); err != nil {
					return err
				}
			}
			continue
		}
		x.mu.RLock()
		err := readPages(x.file, &need, x.own.get(block), dst, start, at)
		if err == nil && x.image != nil {
			err = readPages(x.image, &need, x.image.have.get(block), dst, start, at)
		}
		x.mu.RUnlock()
		if err != nil {
			return err
		}
	}
	for lo, hi := need.next(0); lo < pagesPerBlock; lo, hi = need.next(hi) {
		from, to := clip(lo, hi, at, len(dst))
		if bottom.garbage && bottom.image == nil {
			fillGarbage(dst[from:to], bottom.footer, start+at+int64(from))
		} else {
			clear(dst[from:to])
		}
	}
	return nil
}

// readPages reads those pages of have that need contains, and removes them from
// need.
func readPages(r io.ReaderAt, need *pages, have pages, dst []byte, start, at int64) error {
	take := need.and(have)
	for lo, hi := take.next(0); lo < pagesPerBlock; lo, hi = take.next(hi) {
		from, to := clip(lo, hi, at, len(dst))
		n, err := r.ReadAt(dst[from:to], start+at+int64(from))
		if err == io.EOF {
			// The last page of a file whose length is not a multiple of the
			// page size.
			clear(dst[from+n : to])
		} else if err != nil {
			return err
		}
	}
	*need = need.without(take)
	return nil
}

// clip converts pages lo to hi of a block to a range of a buffer that begins at
// byte at of the block.
func clip(lo, hi int, at int64, length int) (from, to int) {
	return max(lo*pageSize-int(at), 0), min(hi*pageSize-int(at), length)
}

// writeAt writes to the layer's own file in whole pages: it reads the missing
// parts of a page from the layers below.
func (l *layer) writeAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("write: negative offset")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	done := 0
	for done < len(p) && off < l.size {
		block := off / blockSize
		end := min(off+int64(len(p)-done), (block+1)*blockSize, l.size)
		n := int(end - off)
		if err := l.writeBlock(p[done:done+n], block, off-block*blockSize); err != nil {
			return done, err
		}
		done, off = done+n, end
	}
	if done < len(p) {
		return done, errors.New("write: past the end of the device")
	}
	return done, nil
}

func (l *layer) writeBlock(p []byte, block, at int64) error {
	if l.file == nil {
		f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		l.file = f
	}
	if !l.hasBlock(block) {
		if err := l.sr.room(l); err != nil {
			return err
		}
	}
	have := l.own.get(block)
	start, end := block*blockSize, at+int64(len(p))
	first, last := int(at/pageSize), int((end-1)/pageSize)
	if head := at % pageSize; head != 0 && !have.has(first) {
		if err := l.fillPage(block, at-head, head); err != nil {
			return err
		}
	}
	// The rest of the last page; on a disk that ends within a page, it may be
	// empty.
	rest := min(int64(last+1)*pageSize, l.size-start) - end
	if rest > 0 && !have.has(last) {
		if err := l.fillPage(block, end, rest); err != nil {
			return err
		}
	}
	if _, err := l.file.WriteAt(p, start+at); err != nil {
		return err
	}
	if l.own.add(block, pageRange(first, last+1)) && (l.image == nil || !l.image.have.some.has(block)) {
		l.blocks.Add(1)
	}
	l.mtime = time.Now()
	return nil
}

// fillPage copies a part of a page from the layers below into the layer's file.
func (l *layer) fillPage(block, at, n int64) error {
	var page [pageSize]byte
	if err := l.readBlock(page[:n], block, at, l); err != nil {
		return err
	}
	_, err := l.file.WriteAt(page[:n], block*blockSize+at)
	return err
}

// absorb takes over all data that were written to from.
func (l *layer) absorb(from *layer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	from.mu.Lock()
	defer from.mu.Unlock()
	l.size = max(l.size, from.size)
	if from.file == nil {
		return nil
	}
	if l.file == nil {
		l.file, l.path, l.own = from.file, from.path, from.own
		from.file, from.own = nil, presence{}
	} else {
		buf := make([]byte, blockSize)
		for b := from.own.some.next(0); b >= 0; b = from.own.some.next(b + 1) {
			have := from.own.get(b)
			for lo, hi := have.next(0); lo < pagesPerBlock; lo, hi = have.next(hi) {
				off := b*blockSize + int64(lo)*pageSize
				part := buf[:(hi-lo)*pageSize]
				n, err := from.file.ReadAt(part, off)
				if err != nil && err != io.EOF {
					return fmt.Errorf("coalesce: %w", err)
				}
				if _, err := l.file.WriteAt(part[:n], off); err != nil {
					return fmt.Errorf("coalesce: %w", err)
				}
			}
			l.own.add(b, have)
		}
	}
	var all bitset
	all.union(l.own.some)
	if l.image != nil {
		all.union(l.image.have.some)
	}
	l.blocks.Store(all.count())
	return nil
}

// fillGarbage writes the bytes that unwritten space at byte off of a disk
// contains: the same at every read, different for every disk, never zero for
// long.
func fillGarbage(dst []byte, disk vhd.UUID, off int64) {
	seed := binary.LittleEndian.Uint64(disk[:8])
	word := func(i int64) uint64 {
		x := seed + uint64(i)*0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}
	var w [8]byte
	for len(dst) > 0 {
		if off%8 == 0 && len(dst) >= 8 {
			binary.LittleEndian.PutUint64(dst, word(off/8))
			dst, off = dst[8:], off+8
			continue
		}
		binary.LittleEndian.PutUint64(w[:], word(off/8))
		n := copy(dst, w[off%8:])
		dst, off = dst[n:], off+int64(n)
	}
}
