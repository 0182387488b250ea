package seal

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Encoding is the form of a blob's plain bytes before encryption.
type Encoding uint8

const (
	Plain Encoding = 0
	Zstd  Encoding = 1
)

// Level is a compression level. The zero value is LevelDefault; users get LevelAuto
// unless they choose one.
type Level int

const (
	LevelDefault Level = iota
	LevelFastest
	LevelBetter
	LevelBest
	// LevelAuto is no level of a Compressor: a run chooses one by whether it waits
	// for the CPU, or for the source or the storage.
	LevelAuto
)

// Levels returns the names of the levels that users can choose, the one that is used
// without a choice first.
func Levels() []string { return []string{"auto", "fastest", "default", "better", "best"} }

func (l Level) String() string {
	switch l {
	case LevelAuto:
		return "auto"
	case LevelFastest:
		return "fastest"
	case LevelDefault:
		return "default"
	case LevelBetter:
		return "better"
	case LevelBest:
		return "best"
	}
	return fmt.Sprintf("level %d", int(l))
}

// ParseLevel parses the name of a level, see Levels. Without a name it returns
// LevelAuto.
func ParseLevel(s string) (Level, error) {
	if s == "" {
		return LevelAuto, nil
	}
	for l := LevelDefault; l <= LevelAuto; l++ {
		if s == l.String() {
			return l, nil
		}
	}
	return 0, fmt.Errorf("compression %q: want auto, fastest, default, better or best", s)
}

// A Compressor compresses one piece after another. It is not safe for
// concurrent use.
type Compressor struct {
	enc   encoder
	level Level
}

// spare holds closed Compressors for reuse: one takes megabytes, and the tables
// of contents and nodes of a large disk need thousands of them.
var spare [LevelBest + 1]sync.Pool

// NewCompressor returns a Compressor of level l. The caller must close it.
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

// Close makes c available for reuse. The caller must not use c afterwards.
func (c *Compressor) Close() { spare[c.level].Put(c) }

// Bound returns the capacity, in bytes, with which Compress needs no buffer of
// its own for n bytes.
func Bound(n int) int { return n + n>>8 + 64 }

// Compress returns p compressed, in dst[:0] if that has enough room. It returns
// p itself if the result is not smaller, or if a sample of p shows that it
// would not be.
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

// Half of the data on disks is already compressed or encrypted, and an encoder
// takes almost as long to find that out as to compress. Larger pieces are
// therefore sampled first: slices at equal distances, which must contain as many
// different byte values as random data does, and then a range in the middle,
// which is compressed at the lowest level. Compression is skipped only if both
// samples show that it would not help.
const (
	lookSlices  = 32
	lookSlice   = 256 // bytes
	lookVaried  = 137 // different byte values in a slice; random ones have 162 ± 5
	lookMean    = 157 // the mean over all slices; random ones are within 1 of 162
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

// probeFails reports whether compression saves less than 1 % of a range of p.
func (c *Compressor) probeFails(dst, p []byte) bool {
	from := (len(p) - probeSize) / 2
	out := c.enc.encodeFast(dst, p[from:from+probeSize])
	return out != nil && len(out) > probeSize*99/100
}

// decoder is shared, because DecodeAll is safe for concurrent use. Its output
// is bounded by the capacity of the slice that is passed to it.
var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
})

// slack is additional capacity of the output's buffer. With it the decoder can
// copy whole words, and uses its fast path.
const slack = 64

// Decompress returns the n plain bytes that body encodes, in dst[:0] if that
// has room for slightly more than n bytes.
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

// Overhead is the number of bytes that encryption adds to a blob's body.
const Overhead = 16

// Nonce returns the AES-GCM nonce of blob number n under its key part.
func Nonce(n uint32) []byte {
	nonce := make([]byte, 12)
	binary.BigEndian.PutUint32(nonce[8:], n)
	return nonce
}
