package pack

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"

	"github.com/zeebo/blake3"
)

// A Builder fills one pack. Its key is drawn with it and used for nothing
// else: a failed upload is repeated with the same bytes, never with another
// pack under the same key.
type Builder struct {
	keys    *seal.Keys
	kind    Kind
	aead    cipher.AEAD
	salt    []byte
	buf     []byte
	header  int
	entries []Entry
}

// Slot is the place of one blob in a Builder.
type Slot struct {
	entry Entry
	place []byte
}

// Stored is the blob's length in the pack.
func (s Slot) Stored() int { return int(s.entry.Stored) }

// Offset is where the blob lies in the pack.
func (s Slot) Offset() uint32 { return s.entry.Offset }

// NewBuilder begins a pack of the given kind in buf[:0]. The builder owns buf
// until its caller is done with the bytes that Finish returns.
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

// Size is how many bytes the pack has so far, without its table.
func (b *Builder) Size() int { return len(b.buf) }

// Count is how many blobs the pack has so far.
func (b *Builder) Count() int { return len(b.entries) }

// Reserve takes room for a blob of n encoded bytes. It reports false when the
// pack has no room for it under limit; a pack takes at least one blob. Reserve
// calls must not run at once, nor with Finish.
func (b *Builder) Reserve(id chunk.ID, k chunk.Kind, e seal.Encoding, plain, n, limit int) (Slot, bool) {
	stored := n + seal.Overhead
	if len(b.entries) > 0 && (len(b.buf)+stored > limit || len(b.entries) >= maxEntries) || cap(b.buf)-len(b.buf) < stored {
		return Slot{}, false
	}
	entry := Entry{
		ID: id, Kind: k, Encoding: e, Number: uint32(len(b.entries)),
		Plain: uint32(plain), Stored: uint32(stored), Offset: uint32(len(b.buf)),
	}
	at := len(b.buf)
	b.buf = b.buf[:at+stored]
	b.entries = append(b.entries, entry)
	return Slot{entry: entry, place: b.buf[at:at:len(b.buf)]}, true
}

// Fill seals the encoded bytes into their slot. Different slots may be filled
// at once; all must be before Finish.
func (b *Builder) Fill(s Slot, encoded []byte) error {
	if len(encoded)+seal.Overhead != int(s.entry.Stored) {
		return errors.New("pack: slot of another length")
	}
	b.aead.Seal(s.place, seal.Nonce(s.entry.Number), encoded, seal.BlobAAD(s.entry.ID, s.entry.Kind, s.entry.Encoding, s.entry.Plain))
	return nil
}

// Finish ends the pack and returns its name, bytes and contents. Before that
// it reads the pack back as a reader would, all but the blobs.
func (b *Builder) Finish() (ID, []byte, []Entry, error) {
	for i := range b.entries {
		e := &b.entries[i]
		e.Hash = blobHash(b.buf[e.Offset : e.Offset+e.Stored])
	}
	return finish(b.keys, b.buf, b.header, b.salt, b.entries)
}

func blobHash(stored []byte) (h [hashSize]byte) {
	sum := blake3.Sum256(stored)
	copy(h[:], sum[:])
	return h
}

// finish appends table and trailer to buf, which holds header and blobs.
func finish(keys *seal.Keys, buf []byte, header int, salt []byte, entries []Entry) (ID, []byte, []Entry, error) {
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
	table := encodeTable(entries)
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
	return id, buf, d.Entries, nil
}

func packSigned(header, table [32]byte) []byte {
	m := append([]byte(packMessage), header[:]...)
	return append(m, table[:]...)
}

func encodeTable(entries []Entry) []byte {
	t := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(entries)*entrySize), uint32(len(entries)))
	for i := range entries {
		t = append(t, entries[i].ID[:]...)
	}
	for i := range entries {
		t = append(t, byte(entries[i].Kind))
	}
	for i := range entries {
		t = append(t, byte(entries[i].Encoding))
	}
	for i := range entries {
		t = append(t, entries[i].Part)
	}
	for i := range entries {
		t = binary.BigEndian.AppendUint32(t, entries[i].Number)
	}
	for i := range entries {
		t = binary.BigEndian.AppendUint32(t, entries[i].Plain)
	}
	for i := range entries {
		t = binary.BigEndian.AppendUint32(t, entries[i].Stored)
	}
	for i := range entries {
		t = append(t, entries[i].Hash[:]...)
	}
	return t
}

// decodeTable undoes encodeTable; offset is where the first blob lies and end
// where the last one must end.
func decodeTable(t []byte, offset, end int64) ([]Entry, error) {
	if len(t) < 4 {
		return nil, fmt.Errorf("table of contents: %w", seal.ErrCorrupt)
	}
	n := int(binary.BigEndian.Uint32(t))
	if t = t[4:]; n < 0 || int64(len(t)) != int64(n)*entrySize {
		return nil, fmt.Errorf("table of contents: %w", seal.ErrCorrupt)
	}
	column := func(size int) []byte {
		c := t[:n*size]
		t = t[n*size:]
		return c
	}
	ids, kinds, encs, parts := column(32), column(1), column(1), column(1)
	numbers, plains, storeds, hashes := column(4), column(4), column(4), column(hashSize)
	entries := make([]Entry, n)
	for i := range entries {
		e := &entries[i]
		copy(e.ID[:], ids[i*32:])
		e.Kind, e.Encoding, e.Part = chunk.Kind(kinds[i]), seal.Encoding(encs[i]), parts[i]
		e.Number = binary.BigEndian.Uint32(numbers[i*4:])
		e.Plain = binary.BigEndian.Uint32(plains[i*4:])
		e.Stored = binary.BigEndian.Uint32(storeds[i*4:])
		copy(e.Hash[:], hashes[i*hashSize:])
		e.Offset = uint32(offset)
		if e.Stored < seal.Overhead || !e.Kind.Valid() {
			return nil, fmt.Errorf("table of contents: entry %d: %w", i, seal.ErrCorrupt)
		}
		if offset += int64(e.Stored); offset > 1<<32-1 {
			return nil, fmt.Errorf("table of contents: entry %d: %w", i, seal.ErrCorrupt)
		}
	}
	if end >= 0 && offset != end {
		return nil, fmt.Errorf("table of contents: blobs end at %d, not %d: %w", offset, end, seal.ErrCorrupt)
	}
	return entries, nil
}
