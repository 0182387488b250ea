package chunk

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc" // registers the algorithm named below
)

// Algorithms of Params.
const (
	// FastCDC, the default, is FastCDC with a Gear table derived from the
	// repository's cut key, as github.com/PlakarKorp/go-cdc-chunkers v1.1.0
	// defines it under the name "fastcdc-v1.0.0".
	FastCDC = "fastcdc-v1.0.0"
	// Rabin cuts by a Rabin fingerprint of the last 64 bytes, as
	// github.com/restic/chunker v0.4.0 does. The first 8 bytes of the cut key are
	// its polynomial (big-endian), see NewKey.
	Rabin = "rabin-v1"
)

// Params defines how runs are cut. It is part of a repository's config: two
// repositories with different parameters have no common chunks.
type Params struct {
	Algorithm string `json:"algorithm"`
	Min       int    `json:"min"` // bytes; only the last chunk of a run is shorter
	// Normal, in bytes, is a power of two. For FastCDC it is the length that cuts
	// are drawn to, and greater than Min. For Rabin it is the mean distance from
	// Min to the next cut, so that a chunk has about Min + Normal bytes.
	Normal int `json:"normal"`
	Max    int `json:"max"` // bytes
}

// DefaultParams returns the parameters of new repositories. They were chosen by
// stored size and growth on VM images; see docs/format.md.
func DefaultParams() Params {
	return Params{Algorithm: FastCDC, Min: 24 << 10, Normal: 32 << 10, Max: 96 << 10}
}

// RabinParams returns the parameters of new repositories that are cut by Rabin.
// The mean length of their chunks is the closest to that of DefaultParams which
// the algorithm permits.
func RabinParams() Params {
	return Params{Algorithm: Rabin, Min: 24 << 10, Normal: 16 << 10, Max: 96 << 10}
}

// Validate returns an error if this version cannot cut with p.
func (p Params) Validate() error {
	usable := p.Min >= 1<<10 && p.Max <= MaxData && p.Normal&(p.Normal-1) == 0
	switch p.Algorithm {
	case FastCDC:
		usable = usable && p.Normal > p.Min && p.Max > p.Normal
	case Rabin:
		usable = usable && p.Normal >= 1<<10 && p.Max > p.Min+p.Normal
	default:
		return fmt.Errorf("chunker %q is not known to this version", p.Algorithm)
	}
	if !usable {
		return fmt.Errorf("chunk sizes %d/%d/%d are not usable", p.Min, p.Normal, p.Max)
	}
	return nil
}

// NewKey returns a random cut key for p, of 32 bytes. It is generated once, when a
// repository is created.
func (p Params) NewKey() (key [32]byte, err error) {
	_, _ = rand.Read(key[:]) // never fails
	if p.Algorithm == Rabin {
		err = drawPolynomial(key[:])
	}
	return key, err
}

// Chunker cuts runs of bytes. Implementations are not safe for concurrent use.
type Chunker interface {
	// Ends appends to dst the end offset of each chunk of run, in order. The
	// last one is len(run). The end of a chunk depends only on its own bytes.
	Ends(dst []int, run []byte) []int
	// First returns the end of the first chunk of a run that begins with p. The
	// run continues after p unless last is true. First returns 0 if p is too
	// short to determine the end. It reads at most Max bytes, and a cut at i
	// depends on the bytes up to and including i.
	First(p []byte, last bool) int
	// Max returns the greatest length of a chunk, in bytes.
	Max() int
}

// NewChunker returns a chunker with the repository's 32-byte cut key.
func NewChunker(p Params, key []byte) (Chunker, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if len(key) != 32 {
		return nil, errors.New("cut key is not 32 bytes long")
	}
	if p.Algorithm == Rabin {
		return newRabin(p, key)
	}
	c, err := chunkers.NewChunker(p.Algorithm, bytes.NewReader(nil), &chunkers.ChunkerOpts{
		MinSize: p.Min, NormalSize: p.Normal, MaxSize: p.Max, Key: key,
	})
	if err != nil {
		return nil, err
	}
	return &fastCDC{c: c, min: p.Min, max: p.Max}, nil
}

type fastCDC struct {
	c   *chunkers.Chunker
	r   bytes.Reader
	min int
	max int
}

func (f *fastCDC) Max() int { return f.max }

func (f *fastCDC) First(p []byte, last bool) int {
	p = p[:min(len(p), f.max)]
	f.r.Reset(p)
	f.c.Reset(&f.r)
	chunk, _ := f.c.Next() // a bytes.Reader cannot fail
	if n := len(chunk); n < len(p) || last || n == f.max {
		return n
	}
	return 0
}

func (f *fastCDC) Ends(dst []int, run []byte) []int {
	if len(run) <= f.min {
		if len(run) > 0 {
			dst = append(dst, len(run))
		}
		return dst
	}
	f.r.Reset(run)
	f.c.Reset(&f.r)
	at := 0
	for at < len(run) {
		p, err := f.c.Next()
		at += len(p)
		if len(p) > 0 {
			dst = append(dst, at)
		}
		if err != nil || len(p) == 0 {
			break
		}
	}
	if at != len(run) {
		// A bytes.Reader cannot fail, so the library has lost data. This is a
		// bug that must not damage a backup.
		panic("chunk: " + io.ErrUnexpectedEOF.Error() + " from the chunker")
	}
	return dst
}
