package pack

import (
	"bytes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
)

// Trailer is the part of a pack's trailer that can be read without a key.
type Trailer struct {
	Table  int64 // length of the sealed table of contents
	Header int64 // length of the header
}

// ParseTrailer reads the last TrailerSize bytes of a pack of size bytes.
func ParseTrailer(p []byte, size int64) (Trailer, error) {
	if len(p) != TrailerSize || string(p[76:]) != magicTrailer {
		return Trailer{}, fmt.Errorf("trailer: %w", seal.ErrCorrupt)
	}
	t := Trailer{Table: int64(binary.BigEndian.Uint32(p)), Header: int64(binary.BigEndian.Uint32(p[4:]))}
	if t.Header < headerFixed || t.Header > maxHeader || t.Table < seal.Overhead+5 || t.Table > maxTable ||
		t.Header+t.Table+TrailerSize > size {
		return Trailer{}, fmt.Errorf("trailer: %w", seal.ErrCorrupt)
	}
	return t, nil
}

// Directory describes a pack: its writer, key parts and contents.
type Directory struct {
	Kind  Kind
	Cert  seal.Cert
	Blobs []Blob // in the order of the pack

	keys   *seal.Keys
	parts  [][]byte
	firsts []seal.WriterID // of the parts
	aeads  []cipher.AEAD   // opened by Unlock
}

// OpenDirectory verifies and opens a pack's directory from its header and its
// end (table of contents and trailer). It does not check that the blobs fill
// the pack; Covers does.
func OpenDirectory(keys *seal.Keys, header, end []byte) (*Directory, error) {
	d := &Directory{keys: keys}
	if err := d.parseHeader(header); err != nil {
		return nil, err
	}
	if !bytes.Equal(header[8:24], keys.Repo[:]) {
		return nil, seal.ErrForeign
	}
	if len(end) < TrailerSize {
		return nil, fmt.Errorf("trailer: %w", seal.ErrCorrupt)
	}
	table, trailer := end[:len(end)-TrailerSize], end[len(end)-TrailerSize:]
	headerSum, tableSum := sha256.Sum256(header), sha256.Sum256(table)
	if err := keys.Verify(&d.Cert, packSigned(headerSum, tableSum), trailer[8:72]); err != nil {
		return nil, err
	}
	key, err := keys.Derive(header[121:153], "xenkeep pack contents")
	if err != nil {
		return nil, err
	}
	a, err := seal.NewAEAD(key)
	if err != nil {
		return nil, err
	}
	plain, err := a.Open(nil, seal.Nonce(0), table, headerSum[:])
	if err != nil || len(plain) < 5 {
		return nil, fmt.Errorf("table of contents: %w", seal.ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(plain[1:])
	if n > maxTable {
		return nil, fmt.Errorf("table of contents: %w", seal.ErrCorrupt)
	}
	t, err := seal.Decompress(nil, plain[5:], seal.Encoding(plain[0]), int(n))
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	if d.Blobs, err = decodeTable(t, int64(len(header))); err != nil {
		return nil, err
	}
	for i := range d.Blobs {
		if e := &d.Blobs[i]; int(e.Part) >= len(d.parts) || KindOf(e.Kind) != d.Kind {
			return nil, fmt.Errorf("table of contents: blob %d: %w", i, seal.ErrCorrupt)
		}
	}
	return d, nil
}

func (d *Directory) parseHeader(h []byte) error {
	if len(h) < headerFixed || string(h[:4]) != magicHeader {
		return fmt.Errorf("header: %w", seal.ErrCorrupt)
	}
	version := binary.BigEndian.Uint16(h[4:])
	if version > versionFirsts {
		return fmt.Errorf("format %d: %w", version, seal.ErrNewer)
	}
	d.Kind = Kind(h[6])
	copy(d.Cert[:], h[24:])
	n := int(h[7])
	rest := h[headerFixed:]
	for range n {
		first := d.Cert.Writer()
		if version == versionFirsts {
			if len(rest) < len(first) {
				return fmt.Errorf("header: key parts: %w", seal.ErrCorrupt)
			}
			rest = rest[copy(first[:], rest):]
		}
		d.firsts = append(d.firsts, first)
		if len(rest) < 2 {
			return fmt.Errorf("header: key parts: %w", seal.ErrCorrupt)
		}
		size := int(binary.BigEndian.Uint16(rest))
		if len(rest) < 2+size {
			return fmt.Errorf("header: key parts: %w", seal.ErrCorrupt)
		}
		d.parts = append(d.parts, bytes.Clone(rest[2:2+size]))
		rest = rest[2+size:]
	}
	if n < 1 || n > maxParts || len(rest) != 0 || (d.Kind != Data && d.Kind != Tree) {
		return fmt.Errorf("header: %w", seal.ErrCorrupt)
	}
	return nil
}

// FirstWriter returns the writer that stored a blob first. It is the writer of the
// pack, unless the blob was copied from another pack and the writer recorded that.
func (d *Directory) FirstWriter(b *Blob) seal.WriterID { return d.firsts[b.Part] }

// FirstWriters returns the writers that stored the blobs of the pack first.
func (d *Directory) FirstWriters() []seal.WriterID {
	all := slices.Clone(d.firsts)
	slices.SortFunc(all, func(a, b seal.WriterID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(all)
}

// NamesFirstWriters reports whether the beginning of a pack, of at least six bytes,
// is of a version that names the writers that stored the blobs first.
func NamesFirstWriters(p []byte) bool { return binary.BigEndian.Uint16(p[4:]) == versionFirsts }

// Covers checks that the blobs fill a pack of size bytes with the trailer t.
func (d *Directory) Covers(t Trailer, size int64) error {
	end := t.Header
	if n := len(d.Blobs); n > 0 {
		end = int64(d.Blobs[n-1].Offset) + int64(d.Blobs[n-1].Stored)
	}
	if end+t.Table+TrailerSize != size {
		return fmt.Errorf("%d bytes, but %d according to the table of contents: %w", size, end+t.Table+TrailerSize, seal.ErrCorrupt)
	}
	return nil
}

// Unlock opens the key parts, after which Open is safe for concurrent use. For
// a data pack it needs the private data key.
func (d *Directory) Unlock() error {
	if d.aeads != nil {
		return nil
	}
	aeads := make([]cipher.AEAD, len(d.parts))
	for i, part := range d.parts {
		var key []byte
		var err error
		if d.Kind == Data {
			key, err = d.keys.OpenDataKey(part)
		} else {
			key, err = d.keys.Derive(part, "xenkeep tree pack")
		}
		if err != nil {
			return err
		}
		if aeads[i], err = seal.NewAEAD(key); err != nil {
			return err
		}
	}
	d.aeads = aeads
	return nil
}

// Find returns the blob at offset.
func (d *Directory) Find(offset uint32) (*Blob, bool) {
	i := sort.Search(len(d.Blobs), func(i int) bool { return d.Blobs[i].Offset >= offset })
	if i == len(d.Blobs) || d.Blobs[i].Offset != offset {
		return nil, false
	}
	return &d.Blobs[i], true
}

// Open decrypts and decompresses one blob into dst[:0], or into a new slice if
// dst is too small. The caller must compare the pieces with their IDs. Open
// overwrites sealed. Unlock must have been called before. A blob that is longer
// than its kind allows is refused before memory is allocated for it.
func (d *Directory) Open(dst []byte, b *Blob, sealed []byte) ([]byte, error) {
	if d.aeads == nil {
		return nil, errors.New("pack: directory is locked")
	}
	if len(sealed) != int(b.Stored) {
		return nil, fmt.Errorf("%d bytes instead of %d: %w", len(sealed), b.Stored, seal.ErrCorrupt)
	}
	if most := b.Kind.MaxPlain(); b.Plain() > most || int64(b.Stored) > most+seal.Overhead {
		return nil, fmt.Errorf("blob of %v %s of %d bytes, stored in %d, where %d are possible: %w", b.Kind, short(b.Pieces[0].ID), b.Plain(), b.Stored, most, seal.ErrCorrupt)
	}
	body, err := d.aeads[b.Part].Open(sealed[:0], seal.Nonce(b.Number), sealed, b.aad())
	if err != nil {
		return nil, fmt.Errorf("blob of %v %s does not decrypt: %w", b.Kind, short(b.Pieces[0].ID), seal.ErrCorrupt)
	}
	out, err := seal.Decompress(dst, body, b.Encoding, int(b.Plain()))
	if err != nil {
		return nil, fmt.Errorf("blob of %v %s: %w", b.Kind, short(b.Pieces[0].ID), err)
	}
	return out, nil
}

// CheckStored compares the stored bytes of a blob with the hash in the table.
// This verifies the blob without decrypting it.
func (b *Blob) CheckStored(sealed []byte) error {
	if len(sealed) != int(b.Stored) || blobHash(sealed) != b.Hash {
		return fmt.Errorf("blob of %v %s as stored: %w", b.Kind, short(b.Pieces[0].ID), seal.ErrCorrupt)
	}
	return nil
}

func short(id chunk.ID) string { return id.String()[:8] }

// Parse verifies and opens the directory of a whole pack.
func Parse(keys *seal.Keys, data []byte) (*Directory, error) {
	if len(data) < TrailerSize {
		return nil, fmt.Errorf("%d bytes: %w", len(data), seal.ErrCorrupt)
	}
	size := int64(len(data))
	t, err := ParseTrailer(data[size-TrailerSize:], size)
	if err != nil {
		return nil, err
	}
	d, err := OpenDirectory(keys, data[:t.Header], data[size-TrailerSize-t.Table:])
	if err != nil {
		return nil, err
	}
	return d, d.Covers(t, size)
}
