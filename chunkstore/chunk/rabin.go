package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/restic/chunker"
)

// polynomialDegree is the only degree of a polynomial that is accepted: the
// library draws and supports no other.
const polynomialDegree = 53

// errPolynomial is returned for a cut key that Rabin cannot cut with.
var errPolynomial = errors.New("cut key begins with no irreducible polynomial of degree 53")

// drawPolynomial writes a random irreducible polynomial into the first 8 bytes of a
// cut key.
func drawPolynomial(key []byte) error {
	pol, err := chunker.RandomPolynomial()
	if err != nil {
		return fmt.Errorf("draw a polynomial: %w", err)
	}
	binary.BigEndian.PutUint64(key, uint64(pol))
	return nil
}

// rabin cuts by a Rabin fingerprint over a window of 64 bytes. The library empties
// the window at the start of each chunk and begins to fill it 64 bytes before the
// shortest length, so the window never reaches back into the chunk before. The end
// of a chunk therefore depends on nothing but the chunk's own bytes, and an
// incremental backup can begin to cut at any old cut.
type rabin struct {
	c    *chunker.Chunker
	pol  chunker.Pol
	p    Params
	r    bytes.Reader
	data []byte // the chunk that the library copies
}

func newRabin(p Params, key []byte) (*rabin, error) {
	pol := chunker.Pol(binary.BigEndian.Uint64(key))
	if pol.Deg() != polynomialDegree || !pol.Irreducible() {
		return nil, errPolynomial
	}
	return &rabin{c: chunker.New(nil, pol), pol: pol, p: p, data: make([]byte, 0, p.Max)}, nil
}

func (r *rabin) Max() int { return r.p.Max }

// begin sets the library to the first byte of run.
func (r *rabin) begin(run []byte) {
	r.r.Reset(run)
	r.c.ResetWithBoundaries(&r.r, r.pol, uint(r.p.Min), uint(r.p.Max))
	r.c.SetAverageBits(bits.TrailingZeros(uint(r.p.Normal)))
}

// next returns the length of the next chunk, or 0 at the end of the run.
func (r *rabin) next() int {
	c, err := r.c.Next(r.data)
	if err != nil { // io.EOF: a bytes.Reader returns no other error
		return 0
	}
	return int(c.Length)
}

func (r *rabin) First(p []byte, last bool) int {
	p = p[:min(len(p), r.p.Max)]
	r.begin(p)
	// The library returns the bytes up to the end of its input as a chunk as well.
	// If there are more bytes in the run, that is not yet a cut.
	if n := r.next(); n < len(p) || last || n == r.p.Max {
		return n
	}
	return 0
}

func (r *rabin) Ends(dst []int, run []byte) []int {
	r.begin(run)
	at := 0
	for at < len(run) {
		n := r.next()
		if n == 0 {
			// A bytes.Reader cannot fail, so the library has lost data. This is
			// a bug that must not damage a backup.
			panic("chunk: the chunker lost data")
		}
		at += n
		dst = append(dst, at)
	}
	return dst
}
