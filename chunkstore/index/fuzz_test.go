package index

import (
	"testing"

	"github.com/zeebo/blake3"
)

// FuzzSegment passes to the parser segments with correct checksums and
// arbitrary content. The parser must refuse them, or every query of the result
// must be safe.
func FuzzSegment(f *testing.F) {
	x, err := Open("")
	if err != nil {
		f.Fatal(err)
	}
	if err := x.Add("index/a", []PackEntries{packOf(1, 0, 40), packOf(2, 40, 50)}); err != nil {
		f.Fatal(err)
	}
	t := &target{}
	s := x.view.Load().segments[0]
	b, err := newBuilder(t, 50, 2, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	body := append(append(append(append([]byte{}, s.fan...), s.filter...), s.entries...), s.packs...)
	f.Add(b.h.fanBits, b.h.hashes, uint64(s.n), uint64(len(s.filter)/blockSize), uint64(2), uint64(0), body)
	withSource := append(append([]byte{}, body...), 1, 0, 2, 0, 0, 0, 'a', 0, 0, 0, 0, 1, 0, 0, 0)
	f.Add(b.h.fanBits, b.h.hashes, uint64(s.n), uint64(len(s.filter)/blockSize), uint64(2), uint64(1), withSource)
	f.Add(uint32(0), uint32(0), uint64(0), uint64(0), uint64(0), uint64(0), make([]byte, 8))
	f.Fuzz(func(t *testing.T, fanBits, hashes uint32, entries, blocks, packs, sources uint64, body []byte) {
		h := header{fanBits: fanBits, hashes: hashes, entries: entries, blocks: blocks, packs: packs, sources: sources}
		h.fileSize = headerSize + uint64(len(body))
		// Checksums of the sections, as far as the body contains them.
		rest := body
		for i, size := range []uint64{4 * (1<<min(fanBits, 40) + 1), blocks * blockSize, entries * entrySize} {
			if size > uint64(len(rest)) {
				break
			}
			sum := blake3.Sum256(rest[:size])
			rest = rest[size:]
			*[]*[sumSize]byte{&h.fanSum, &h.filterSum, &h.entrySum}[i] = sum
		}
		h.tailSum = blake3.Sum256(rest)
		s, err := parseSegment("seg-fuzz", append(h.encode(), body...))
		if err != nil {
			return
		}
		v := newView([]*part{{segment: s}}, nil, [sumSize]byte{})
		for i := range 60 {
			hi, lo := split(prefix(i))
			v.lookup(hi, lo)
			v.locate(hi, lo, false, nil)
			v.gather(hi, lo, nil)
		}
		for i := range s.n {
			hi, lo := s.key(i)
			v.lookup(hi, lo)
			v.gather(hi, lo, nil)
		}
		if _, _, err := v.merge(folder{}, v.segments); err != nil {
			return
		}
	})
}
