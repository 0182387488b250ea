package index

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/bits"

	"github.com/zeebo/blake3"
)

const (
	maxFanBits = 28
	// perBucket is the smallest mean number of entries in a bucket. The largest
	// mean is twice that.
	perBucket = 16

	writeBuffer = 1 << 20
)

var errTooMany = errors.New("index: more than 2^32 entries or packs in one segment")

// builder writes a segment from its parts, which must come in the order of the
// file: entries ascending, then packs ascending, then sources. In memory it
// holds the filter and one number for each pack, and nothing else that grows
// with the number of entries.
type builder struct {
	out     io.WriterAt
	h       header
	counts  []uint32 // entries of each pack
	buckets int      // fan values written
	written uint64   // bytes of the entries and of everything after them

	fan, body       *bufio.Writer  // write through hashWriters
	fanHash, bodyIs *blake3.Hasher // bodyIs hashes the section that body writes
	filter          []byte
	tail            bool
	scratch         [packSize]byte
}

// hashWriter hashes everything that it passes on. Hashing never fails.
type hashWriter struct {
	w io.Writer
	h *blake3.Hasher
}

func (w hashWriter) Write(p []byte) (int, error) {
	_, _ = w.h.Write(p)
	return w.w.Write(p)
}

// newBuilder begins a segment of the stated number of packs and at most the
// stated number of entries. Its filter takes at most filterBudget bytes.
func newBuilder(out io.WriterAt, entries uint64, packs int, filterBudget int64) (*builder, error) {
	if entries > math.MaxUint32 || uint64(packs) > math.MaxUint32 {
		return nil, errTooMany
	}
	b := &builder{out: out, counts: make([]uint32, packs), fanHash: blake3.New(), bodyIs: blake3.New()}
	b.h.fanBits = min(uint32(bits.Len64(entries/(2*perBucket))), maxFanBits)
	b.h.blocks, b.h.hashes = filterSize(entries, filterBudget)
	b.filter = make([]byte, b.h.blocks*blockSize)
	b.fan = bufio.NewWriterSize(hashWriter{io.NewOffsetWriter(out, headerSize), b.fanHash}, 64<<10)
	b.body = bufio.NewWriterSize(hashWriter{io.NewOffsetWriter(out, b.entriesAt()), b.bodyIs}, writeBuffer)
	return b, nil
}

func (b *builder) filterAt() int64  { return headerSize + 4*(1<<b.h.fanBits+1) }
func (b *builder) entriesAt() int64 { return b.filterAt() + int64(len(b.filter)) }

// fanTo writes the fan values of all buckets up to and including bucket.
func (b *builder) fanTo(bucket int) error {
	for b.buckets <= bucket {
		p := binary.LittleEndian.AppendUint32(b.scratch[:0], uint32(b.h.entries))
		if _, err := b.fan.Write(p); err != nil {
			return err
		}
		b.buckets++
	}
	return nil
}

func (b *builder) entry(hi, lo uint64, pack, offset, length uint32) error {
	if err := b.fanTo(int(hi >> (64 - b.h.fanBits))); err != nil {
		return err
	}
	setFilter(b.filter, b.h.hashes, hi, lo)
	p := binary.BigEndian.AppendUint64(b.scratch[:0], hi)
	p = binary.BigEndian.AppendUint64(p, lo)
	p = binary.LittleEndian.AppendUint32(p, pack)
	p = binary.LittleEndian.AppendUint32(p, offset)
	p = binary.LittleEndian.AppendUint32(p, length)
	b.h.entries++
	b.counts[pack]++
	return b.write(p)
}

func (b *builder) write(p []byte) error {
	n, err := b.body.Write(p)
	b.written += uint64(n)
	return err
}

// endEntries completes the sections that depend on the entries: the entries
// themselves, the fan and the filter.
func (b *builder) endEntries() error {
	if b.tail {
		return nil
	}
	b.tail = true
	if err := b.body.Flush(); err != nil {
		return err
	}
	b.bodyIs.Sum(b.h.entrySum[:0])
	b.bodyIs.Reset()
	if err := b.fanTo(1 << b.h.fanBits); err != nil {
		return err
	}
	if err := b.fan.Flush(); err != nil {
		return err
	}
	b.fanHash.Sum(b.h.fanSum[:0])
	b.h.filterSum = blake3.Sum256(b.filter)
	_, err := b.out.WriteAt(b.filter, b.filterAt())
	return err
}

func (b *builder) pack(id []byte, size int64) error {
	if err := b.endEntries(); err != nil {
		return err
	}
	p := append(b.scratch[:0], id...)
	p = binary.LittleEndian.AppendUint64(p, uint64(size))
	p = binary.LittleEndian.AppendUint32(p, b.counts[b.h.packs])
	p = binary.LittleEndian.AppendUint32(p, 0)
	b.h.packs++
	return b.write(p)
}

// source writes a source and the numbers of its packs, which may be in any
// order.
func (b *builder) source(name string, packs []uint32) error {
	if err := b.endEntries(); err != nil {
		return err
	}
	if len(name) > math.MaxUint16 {
		return errors.New("index: name of source too long")
	}
	p := binary.LittleEndian.AppendUint16(b.scratch[:0], uint16(len(name)))
	p = binary.LittleEndian.AppendUint32(p, uint32(len(packs)))
	if err := b.write(append(p, name...)); err != nil {
		return err
	}
	for _, n := range packs {
		if err := b.write(binary.LittleEndian.AppendUint32(b.scratch[:0], n)); err != nil {
			return err
		}
	}
	b.h.sources++
	return nil
}

// finish writes the header last, and returns the size of the file.
func (b *builder) finish() (int64, error) {
	if err := b.endEntries(); err != nil {
		return 0, err
	}
	if err := b.body.Flush(); err != nil {
		return 0, err
	}
	b.bodyIs.Sum(b.h.tailSum[:0])
	b.h.fileSize = uint64(b.entriesAt()) + b.written
	_, err := b.out.WriteAt(b.h.encode(), 0)
	return int64(b.h.fileSize), err
}
