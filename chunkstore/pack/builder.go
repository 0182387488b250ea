package pack

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"

	"github.com/zeebo/blake3"
)

// A Builder fills one pack. It generates the pack's key itself and uses it for
// nothing else. A failed upload must be repeated with the same bytes, and never
// with a different pack under the same key.
type Builder struct {
	keys   *seal.Keys
	kind   Kind
	aead   cipher.AEAD
	salt   []byte
	buf    []byte
	header int
	blobs  []Blob
	pieces int
}

// Reservation is space reserved for one blob in a Builder.
type Reservation struct {
	blob  Blob
	place []byte
}

// Stored returns the blob's length in the pack.
func (s Reservation) Stored() int { return int(s.blob.Stored) }

// Offset returns the blob's offset in the pack.
func (s Reservation) Offset() uint32 { return s.blob.Offset }

// NewBuilder begins a pack of kind in buf[:0]. The builder owns buf until its
// caller no longer needs the bytes that Finish returns.
func NewBuilder(keys *seal.Keys, kind Kind, buf []byte) (*Builder, error) {
	b := &Builder{keys: keys, kind: kind, buf: buf[:0]}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	var part []byte
	var key []byte
	var err error
	switch kind {
	case Data:
		key = secret
		part, err = keys.SealDataKey(secret)
	case Tree:
		part = secret
		key, err = keys.Derive(secret, "xenkeep tree pack")
	default:
		err = fmt.Errorf("pack of %v", kind)
	}
	if err != nil {
		return nil, err
	}
	if b.aead, err = seal.NewAEAD(key); err != nil {
		return nil, err
	}
	b.salt = make([]byte, 32)
	_, _ = rand.Read(b.salt)

	b.buf = append(b.buf, magicHeader...)
	b.buf = binary.BigEndian.AppendUint16(b.buf, seal.Version)
	b.buf = append(b.buf, byte(kind), 1)
	b.buf = append(b.buf, keys.Repo[:]...)
	b.buf = append(b.buf, keys.Cert[:]...)
	b.buf = append(b.buf, b.salt...)
	b.buf = binary.BigEndian.AppendUint16(b.buf, uint16(len(part)))
	b.buf = append(b.buf, part...)
	b.header = len(b.buf)
	return b, nil
}

// Size returns the size of the pack so far, in bytes, without its table.
func (b *Builder) Size() int { return len(b.buf) }

// Count returns the number of blobs in the pack so far.
func (b *Builder) Count() int { return len(b.blobs) }

// Reserve reserves space for a blob of n encoded bytes that contains pieces;
// the builder retains pieces. It returns false if the pack has no room for the
// blob within limit. A pack without blobs accepts a blob beyond limit if buf
// has room for it. Reserve must not be called concurrently with itself or with
// Finish.
func (b *Builder) Reserve(k chunk.Kind, e seal.Encoding, pieces []Entry, n, limit int) (Reservation, bool) {
	stored := n + seal.Overhead
	if len(b.blobs) > 0 && (len(b.buf)+stored > limit || b.pieces+len(pieces) > maxPieces) || cap(b.buf)-len(b.buf) < stored {
		return Reservation{}, false
	}
	at := len(b.buf)
	b.buf = b.buf[:at+stored]
	b.blobs = append(b.blobs, Blob{
		Kind: k, Encoding: e, Number: uint32(len(b.blobs)), Stored: uint32(stored), Offset: uint32(at), Pieces: pieces,
	})
	b.pieces += len(pieces)
	return Reservation{blob: b.blobs[len(b.blobs)-1], place: b.buf[at:at:len(b.buf)]}, true
}

// Fill seals the encoded bytes into their slot. Different slots may be filled
// concurrently. All slots must be filled before Finish.
func (b *Builder) Fill(s Reservation, encoded []byte) error {
	if len(encoded)+seal.Overhead != int(s.blob.Stored) {
		return errors.New("pack: slot of another length")
	}
	b.aead.Seal(s.place, seal.Nonce(s.blob.Number), encoded, s.blob.aad())
	return nil
}

// Finish completes the pack and returns its name, bytes and contents. Before it
// returns, it reads the pack back as a reader would, except for the blobs.
func (b *Builder) Finish() (ID, []byte, []Blob, error) {
	for i := range b.blobs {
		e := &b.blobs[i]
		e.Hash = blobHash(b.buf[e.Offset : e.Offset+e.Stored])
	}
	return finish(b.keys, b.buf, b.header, b.salt, b.blobs)
}

func blobHash(stored []byte) (h [hashSize]byte) {
	sum := blake3.Sum256(stored)
	copy(h[:], sum[:])
	return h
}

// finish appends the table and the trailer to buf, which contains the header
// and the blobs.
func finish(keys *seal.Keys, buf []byte, header int, salt []byte, blobs []Blob) (ID, []byte, []Blob, error) {
	headerSum := sha256.Sum256(buf[:header])
	key, err := keys.Derive(salt, "xenkeep pack contents")
	if err != nil {
		return ID{}, nil, nil, err
	}
	a, err := seal.NewAEAD(key)
	if err != nil {
		return ID{}, nil, nil, err
	}
	c, err := seal.NewCompressor(seal.LevelDefault)
	if err != nil {
		return ID{}, nil, nil, err
	}
	defer c.Close()
	table := encodeTable(blobs)
	encoded, enc := c.Compress(nil, table)
	plain := append([]byte{byte(enc)}, binary.BigEndian.AppendUint32(nil, uint32(len(table)))...)
	plain = append(plain, encoded...)
	at := len(buf)
	buf = a.Seal(buf, seal.Nonce(0), plain, headerSum[:])
	tableSum := sha256.Sum256(buf[at:])

	toc := len(buf) - at
	buf = binary.BigEndian.AppendUint32(buf, uint32(toc))
	buf = binary.BigEndian.AppendUint32(buf, uint32(header))
	buf = append(buf, keys.Sign(packSigned(headerSum, tableSum))...)
	buf = append(buf, 0, 0, 0, 0)
	buf = append(buf, magicTrailer...)

	id := ID(sha256.Sum256(buf))
	d, err := OpenDirectory(keys, buf[:header], buf[at:])
	if err != nil {
		return ID{}, nil, nil, fmt.Errorf("pack just built does not read back: %w", err)
	}
	return id, buf, d.Blobs, nil
}

func packSigned(header, table [32]byte) []byte {
	m := append([]byte(packMessage), header[:]...)
	return append(m, table[:]...)
}

func encodeTable(blobs []Blob) []byte {
	pieces := 0
	for i := range blobs {
		pieces += len(blobs[i].Pieces)
	}
	t := make([]byte, 0, 8+len(blobs)*blobSize+pieces*pieceSize)
	t = binary.BigEndian.AppendUint32(t, uint32(len(blobs)))
	t = binary.BigEndian.AppendUint32(t, uint32(pieces))
	for i := range blobs {
		t = append(t, byte(blobs[i].Kind))
	}
	for i := range blobs {
		t = append(t, byte(blobs[i].Encoding))
	}
	for i := range blobs {
		t = append(t, blobs[i].Part)
	}
	for i := range blobs {
		t = binary.BigEndian.AppendUint32(t, blobs[i].Number)
	}
	for i := range blobs {
		t = binary.BigEndian.AppendUint32(t, blobs[i].Stored)
	}
	for i := range blobs {
		t = binary.BigEndian.AppendUint16(t, uint16(len(blobs[i].Pieces)))
	}
	for i := range blobs {
		t = append(t, blobs[i].Hash[:]...)
	}
	for i := range blobs {
		for _, p := range blobs[i].Pieces {
			t = append(t, p.ID[:]...)
		}
	}
	for i := range blobs {
		for _, p := range blobs[i].Pieces {
			t = binary.BigEndian.AppendUint32(t, p.Length)
		}
	}
	return t
}

// decodeTable is the inverse of encodeTable. The first blob starts at offset.
func decodeTable(t []byte, offset int64) ([]Blob, error) {
	bad := func(what string) error { return fmt.Errorf("table of contents: %s: %w", what, seal.ErrCorrupt) }
	if len(t) < 8 {
		return nil, bad("length")
	}
	n, m := int64(binary.BigEndian.Uint32(t)), int64(binary.BigEndian.Uint32(t[4:]))
	if t = t[8:]; int64(len(t)) != n*blobSize+m*pieceSize {
		return nil, bad("length")
	}
	column := func(count, size int64) []byte {
		c := t[:count*size]
		t = t[count*size:]
		return c
	}
	kinds, encs, parts := column(n, 1), column(n, 1), column(n, 1)
	numbers, storeds, counts, hashes := column(n, 4), column(n, 4), column(n, 2), column(n, hashSize)
	ids, lengths := column(m, 32), column(m, 4)
	pieces := make([]Entry, m)
	for i := range pieces {
		copy(pieces[i].ID[:], ids[i*32:])
		pieces[i].Length = binary.BigEndian.Uint32(lengths[i*4:])
	}
	blobs := make([]Blob, n)
	for i := range blobs {
		b := &blobs[i]
		b.Kind, b.Encoding, b.Part = chunk.Kind(kinds[i]), seal.Encoding(encs[i]), parts[i]
		b.Number, b.Stored = binary.BigEndian.Uint32(numbers[i*4:]), binary.BigEndian.Uint32(storeds[i*4:])
		copy(b.Hash[:], hashes[i*hashSize:])
		b.Offset = uint32(offset)
		k := int(binary.BigEndian.Uint16(counts[i*2:]))
		if k == 0 || k > len(pieces) {
			return nil, bad(fmt.Sprintf("pieces of blob %d", i))
		}
		b.Pieces, pieces = pieces[:k:k], pieces[k:]
		offset += int64(b.Stored)
		if b.Stored < seal.Overhead || !b.Kind.Valid() || offset > math.MaxUint32 || b.Plain() > math.MaxUint32 {
			return nil, bad(fmt.Sprintf("blob %d", i))
		}
	}
	if len(pieces) != 0 {
		return nil, bad("pieces without a blob")
	}
	return blobs, nil
}
