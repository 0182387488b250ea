package seal

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Encoding says how a blob's plain bytes are written before encryption.
type Encoding uint8

const (
	Plain Encoding = 0
	Zstd  Encoding = 1
)

// Level is a compression level. The zero value is the default.
type Level int

const (
	LevelDefault Level = iota
	LevelFastest
	LevelBetter
	LevelBest
)

// ParseLevel reads a level as users write it: fastest, default, better, best.
func ParseLevel(s string) (Level, error) {
	switch s {
	case "", "default":
		return LevelDefault, nil
	case "fastest":
		return LevelFastest, nil
	case "better":
		return LevelBetter, nil
	case "best":
		return LevelBest, nil
	}
	return 0, fmt.Errorf("compression %q: want fastest, default, better or best", s)
}

// A Compressor compresses one piece after another. It is not safe for
// concurrent use.
type Compressor struct {
	enc   encoder
	level Level
}

// spare holds closed Compressors: one takes megabytes, and the tables of
// contents and nodes of a large disk ask for thousands.
var spare [LevelBest + 1]sync.Pool

// NewCompressor returns a Compressor of the given level; Close ends it.
func NewCompressor(l Level) (*Compressor, error) {
	if l < 0 || l > LevelBest {
		return nil, fmt.Errorf("compression level %d", l)
	}
	if c, ok := spare[l].Get().(*Compressor); ok {
		return c, nil
	}
	enc, err := newEncoder(l)
	if err != nil {
		return nil, err
	}
	return &Compressor{enc: enc, level: l}, nil
}

// Close makes c free for another to use.
func (c *Compressor) Close() { spare[c.level].Put(c) }

// Bound is the room, in bytes, with which Compress needs no buffer of its own
// for n bytes.
func Bound(n int) int { return n + n>>8 + 64 }

// Compress returns p compressed, in dst[:0] where it has room, or p itself
// where that is not larger, or where a look at it says that it will not be.
func (c *Compressor) Compress(dst, p []byte) ([]byte, Encoding) {
	if len(p) < 64 || (looksRandom(p) && c.probeFails(dst, p)) {
		return p, Plain
	}
	out := c.enc.encode(dst, p)
	if out == nil || len(out) >= len(p) {
		return p, Plain
	}
	return out, Zstd
}

// Half of what lies on disks is compressed or encrypted already, and an encoder
// takes almost as long to find that out as to compress. So larger pieces are
// looked at first: slices at even distances, which must have as many different
// bytes as random ones have, and then a stretch in the middle, compressed at
// the lowest level. Both must say that nothing is to be gained.
const (
	lookSlices  = 32
	lookSlice   = 256 // bytes
	lookVaried  = 137 // different bytes of a slice; random ones have 162, give or take 5
	lookMean    = 157 // the same over all slices; random ones are within 1 of 162
	lookMinimum = 4 * lookSlices * lookSlice
	probeSize   = 16 << 10
)

func looksRandom(p []byte) bool {
	if len(p) < lookMinimum {
		return false
	}
	gap := (len(p) - lookSlice) / (lookSlices - 1)
	sum := 0
	for i := range lookSlices {
		var seen [256]uint8
		n := 0
		for _, b := range p[i*gap : i*gap+lookSlice] {
			n += int(1 - seen[b])
			seen[b] = 1
		}
		if n < lookVaried {
			return false
		}
		sum += n
	}
	return sum >= lookMean*lookSlices
}

// probeFails tells whether a stretch of p does not get smaller by 1 %.
func (c *Compressor) probeFails(dst, p []byte) bool {
	from := (len(p) - probeSize) / 2
	out := c.enc.encodeFast(dst, p[from:from+probeSize])
	return out != nil && len(out) > probeSize*99/100
}

// decoder is shared: DecodeAll is safe for concurrent use. The output is
// bounded by the capacity it is given.
var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
})

// slack is what the output's buffer has beyond the content: with it the decoder
// copies whole words, and takes its fast path.
const slack = 64

// Decompress gives the n plain bytes that body stands for, in dst[:0] where it
// has room for a little more than these.
func Decompress(dst, body []byte, e Encoding, n int) ([]byte, error) {
	switch e {
	case Plain:
		if len(body) != n {
			return nil, fmt.Errorf("%d bytes instead of %d: %w", len(body), n, ErrCorrupt)
		}
		return append(dst[:0], body...), nil
	case Zstd:
		if cap(dst) < n+slack {
			dst = make([]byte, 0, n+slack)
		}
		dec, err := decoder()
		if err != nil {
			return nil, err
		}
		out, err := dec.DecodeAll(body, dst[:0:n+slack])
		if err != nil {
			return nil, fmt.Errorf("decompress: %v: %w", err, ErrCorrupt)
		}
		if len(out) != n {
			return nil, fmt.Errorf("%d bytes instead of %d: %w", len(out), n, ErrCorrupt)
		}
		return out, nil
	}
	return nil, fmt.Errorf("encoding %d: %w", e, ErrNewer)
}

// Overhead is what encryption adds to a blob's body, in bytes.
const Overhead = 16

// Nonce is the AES-GCM nonce of blob number n under its key part.
func Nonce(n uint32) []byte {
	nonce := make([]byte, 12)
	binary.BigEndian.PutUint32(nonce[8:], n)
	return nonce
}
