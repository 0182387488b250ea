// Package pack builds and reads packs: objects of about 32 MiB that contain
// many sealed blobs and describe themselves. It works on bytes only, and does
// no I/O.
//
// The layout of a pack is
//
//	header | blobs | sealed table of contents | trailer
//
// All integers are big-endian.
//
//	header
//	offset  size  field
//	     0     4  magic "XKPK"
//	     4     2  format version
//	     6     1  kind: 1 data, 2 tree
//	     7     1  number of key parts, 1 to 64
//	     8    16  repository ID
//	    24    97  certificate of the writer
//	   121    32  salt, random
//	   153     …  key parts: length (2 bytes), bytes
//
// In version 2, which packs of copied blobs have in a repository with the feature
// "first-writer", each key part is preceded by the ID of the writer that stored its
// blobs first (16 bytes).
//
// A key part of a data pack is a random 32-byte key, sealed with HPKE to the
// repository's data key. A key part of a tree pack is a random 32-byte salt,
// from which the key is derived by HKDF-SHA256(tree key, salt, "xenkeep tree
// pack"). A blob is encrypted with AES-256-GCM under the key of its part, with
// its number as nonce. A newly written pack has one key part; a pack of copied
// sealed blobs has the key parts of the packs from which they were copied.
//
//	trailer
//	     0     4  length of the sealed table of contents
//	     4     4  length of the header
//	     8    64  Ed25519 signature of "xenkeep pack 1", SHA-256(header), SHA-256(sealed table)
//	    72     4  zero
//	    76     4  magic "XKPE"
//
// The table is encrypted with AES-256-GCM (key HKDF(tree key, header's salt,
// "xenkeep pack contents"), nonce zero, associated data SHA-256(header)). Its
// plain text is one encoding byte, the plain length (4 bytes) and the encoded
// table: the number of blobs and the number of pieces (4 bytes each), then one
// column after another. The columns of the blobs, in their order, are: kinds
// (1), encodings (1), key parts (1), nonce numbers (4), stored lengths (4),
// numbers of pieces (2), and the first 16 bytes of the unkeyed BLAKE3 hash of
// the stored blob. The columns of the pieces, blob after blob, are: IDs (32),
// plain lengths (4). There are no gaps between the blobs.
//
// A blob contains one piece, or several chunks of a disk that were new at the
// same time. Chunks in one blob are compressed together, which is both smaller
// and faster.
package pack

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
)

// Versions of the header. The first one says nothing about the writers of copied
// blobs.
const (
	versionPlain  = 1
	versionFirsts = 2
)

const (
	magicHeader  = "XKPK"
	magicTrailer = "XKPE"
	headerFixed  = 153
	// TrailerSize is the length of a pack's trailer.
	TrailerSize = 80
	maxParts    = 64
	blobSize    = 1 + 1 + 1 + 4 + 4 + 2 + hashSize // in the table
	pieceSize   = 32 + 4
	hashSize    = 16
	packMessage = "xenkeep pack 1"

	// TargetSize is the size that packs reach, in bytes, without the table.
	TargetSize = 32 << 20
	// GroupSize is the maximum number of plain bytes of chunks in one blob, and
	// MaxGroup is the maximum number of chunks.
	GroupSize = chunk.MaxData
	MaxGroup  = 1 << 12
	// maxPieces bounds the table of a pack that is written.
	maxPieces = 1 << 15

	// Upper bounds for the lengths in a trailer that is not verified yet,
	// because readers allocate memory of these lengths.
	maxHeader = headerFixed + maxParts*(16+2+1<<16)
	maxTable  = 16 << 20
)

// Kind determines which blobs a pack contains. Its values are part of the
// format.
type Kind uint8

const (
	Data Kind = 1 // chunks and records: only the private data key decrypts them
	Tree Kind = 2 // block lists, nodes, roots
)

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Tree:
		return "tree"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// KindOf returns the kind of pack for blobs of kind k.
func KindOf(k chunk.Kind) Kind {
	if k.Tree() {
		return Tree
	}
	return Data
}

// ID identifies a pack. It is the SHA-256 of the pack's bytes.
type ID [32]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the beginning of the ID, for messages.
func (id ID) Short() string { return hex.EncodeToString(id[:4]) }

// ObjectName returns the name of the pack's object in storage.
func (id ID) ObjectName() string {
	s := id.String()
	return "packs/" + s[:2] + "/" + s
}

// ParseObjectName is the inverse of ObjectName.
func ParseObjectName(name string) (id ID, ok bool) {
	if len(name) != len("packs/00/")+64 || name[:6] != "packs/" || name[8] != '/' || name[6:8] != name[9:11] {
		return id, false
	}
	n, err := hex.Decode(id[:], []byte(name[9:]))
	return id, err == nil && n == len(id) && id.ObjectName() == name
}

// Entry is plain data with an ID of its own.
type Entry struct {
	ID     chunk.ID
	Length uint32 // bytes
}

// Blob is one sealed range of a pack.
type Blob struct {
	Kind     chunk.Kind
	Encoding seal.Encoding
	Part     uint8  // index of its key part
	Number   uint32 // nonce number under that part
	Stored   uint32 // length in the pack
	Offset   uint32 // from the start of the pack
	Hash     [hashSize]byte
	Pieces   []Entry // in the order of its plain bytes
}

// Plain returns the length of the blob's plain bytes.
func (b *Blob) Plain() int64 {
	var n int64
	for _, p := range b.Pieces {
		n += int64(p.Length)
	}
	return n
}

// Find returns the position of a piece in the blob's plain bytes.
func (b *Blob) Find(id chunk.ID) (from, to int, ok bool) {
	for _, p := range b.Pieces {
		to = from + int(p.Length)
		if p.ID == id {
			return from, to, true
		}
		from = to
	}
	return 0, 0, false
}

// aad returns the associated data that binds a blob to its contents: kind,
// encoding, and the ID and length (big-endian) of each piece.
func (b *Blob) aad() []byte {
	aad := make([]byte, 0, 2+len(b.Pieces)*pieceSize)
	aad = append(aad, byte(b.Kind), byte(b.Encoding))
	for _, p := range b.Pieces {
		aad = append(aad, p.ID[:]...)
		aad = binary.BigEndian.AppendUint32(aad, p.Length)
	}
	return aad
}

// Error names the pack, and the position in it, at which an error occurred.
type Error struct {
	Pack   ID
	Offset int64 // of the blob, or -1
	Err    error
}

func (e *Error) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("pack %s: %v", e.Pack.Short(), e.Err)
	}
	return fmt.Sprintf("pack %s: blob at %#x: %v", e.Pack.Short(), e.Offset, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }
