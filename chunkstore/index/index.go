// Package index knows where each chunk lies: ID -> (pack, offset, length). It
// is a cache of the repository's index objects on this machine, and can always
// be made again from them; losing it costs time, never data.
//
// Entries are kept in segments: immutable files, sorted by ID, read through a
// memory map, so that memory does not grow with the repository. A manifest,
// replaced atomically, names the segments that count. Several processes may
// share a cache folder; each keeps its maps while another merges.
package index

// Prefix is the first half of a chunk ID. IDs are uniformly random, so that
// 128 bits are enough to find one; the whole ID is compared when the blob is
// opened.
type Prefix [16]byte

// PrefixOf gives the prefix of a chunk ID.
func PrefixOf(id [32]byte) Prefix { return Prefix(id[:16]) }

// Location is where a blob lies: bytes [Offset, Offset+Length) of a pack.
type Location struct {
	Pack           [32]byte
	Offset, Length uint32
}

// Entry is one blob of a pack.
type Entry struct {
	Prefix         Prefix
	Offset, Length uint32
}

// PackEntries is what an index object says of one pack. Entries need not be in
// order, nor be all of the pack: index objects split by prefix each hold a part.
type PackEntries struct {
	Pack    [32]byte
	Size    int64 // of the pack, bytes
	Entries []Entry
}

// Source is one index object of the repository, by its name.
type Source struct {
	Name  string
	Packs []PackEntries
}

// Pack is a pack that at least one source covers.
type Pack struct {
	ID      [32]byte
	Size    int64  // bytes
	Entries uint32 // known here
}

// Stats are figures of an index.
type Stats struct {
	Sources, Packs, Segments int
	Entries                  int64 // of packs that a source covers
	Bytes                    int64 // of all segment files
}
