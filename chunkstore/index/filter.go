package index

import "math/bits"

// A filter tells most prefixes that a segment lacks without touching its
// entries: a Bloom filter in blocks of one cache line, so that a question costs
// one access to memory. Prefixes are random, so their own bits choose the
// block (second half) and the bits within it (first half, 9 each).
const (
	blockSize = 64 // bytes

	// filterBits for each entry make about one lookup in 150 go on in vain.
	filterBits = 12
	maxHashes  = 6

	// filterMemory bounds all filters of an index together. Filters then thin
	// out as a repository grows beyond 45 million entries, some 1.6 TiB of unique data.
	filterMemory = 64 << 20
)

// filterSize gives the blocks and the hashes for so many entries in at most
// budget bytes.
func filterSize(entries uint64, budget int64) (blocks uint64, hashes uint32) {
	blocks = min((entries*filterBits/8+blockSize-1)/blockSize, uint64(max(0, budget))/blockSize)
	if blocks == 0 || entries == 0 {
		return 0, 0
	}
	// The best number of hashes is 0.69 times the bits for each entry.
	perEntry := float64(blocks*blockSize*8) / float64(entries)
	return blocks, uint32(max(1, min(maxHashes, int(perEntry*0.69))))
}

func (s *segment) mayHold(hi, lo uint64) bool {
	if s.hashes == 0 {
		return true
	}
	at, _ := bits.Mul64(lo, uint64(len(s.filter)/blockSize))
	block := (*[blockSize]byte)(s.filter[at*blockSize:])
	for range s.hashes {
		if block[hi>>3&63]&(1<<(hi&7)) == 0 {
			return false
		}
		hi >>= 9
	}
	return true
}

func setFilter(filter []byte, hashes uint32, hi, lo uint64) {
	if hashes == 0 {
		return
	}
	at, _ := bits.Mul64(lo, uint64(len(filter)/blockSize))
	block := (*[blockSize]byte)(filter[at*blockSize:])
	for range hashes {
		block[hi>>3&63] |= 1 << (hi & 7)
		hi >>= 9
	}
}
