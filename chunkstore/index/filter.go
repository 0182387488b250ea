package index

import "math/bits"

// A filter rejects most prefixes that a segment does not contain without
// reading its entries. It is a Bloom filter in blocks of one cache line, so
// that a query costs one access to memory. Prefixes are random, so their own
// bits select the block (second half) and the bits within it (first half, 9
// bits each).
const (
	blockSize = 64 // bytes

	// With filterBits bits for each entry, about one in 150 absent prefixes
	// passes the filter.
	filterBits = 12
	maxHashes  = 6

	// filterMemory bounds the total size of all filters of an index. Beyond 45
	// million entries, some 1.6 TiB of unique data, filters therefore have
	// fewer bits for each entry as the repository grows.
	filterMemory = 64 << 20
)

// filterSize returns the number of blocks and of hashes for a number of
// entries, within budget bytes.
func filterSize(entries uint64, budget int64) (blocks uint64, hashes uint32) {
	blocks = min((entries*filterBits/8+blockSize-1)/blockSize, uint64(max(0, budget))/blockSize)
	if blocks == 0 || entries == 0 {
		return 0, 0
	}
	// The optimal number of hashes is 0.69 times the number of bits for each
	// entry.
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
