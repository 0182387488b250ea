package pack

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"

	"xenkeep/chunkstore/seal"
)

// A Copier fills one pack with blobs of other packs, which remain sealed: each
// keeps its key part, its number under that part, and therefore its nonce. It
// needs no key that decrypts data.
type Copier struct {
	keys   *seal.Keys
	kind   Kind
	buf    []byte // the blobs, starting at room; the header is placed directly before them
	room   int
	parts  [][]byte
	firsts []seal.WriterID // of the parts; nil if they are not stored
	blobs  []Blob
	pieces int
}

// NewCopier begins a pack of kind, of at most TargetSize bytes of blobs. A
// larger blob is accepted if it is the only one. With firsts, the pack names the
// writers that stored the blobs first.
func NewCopier(keys *seal.Keys, kind Kind, firsts bool) *Copier {
	c := &Copier{keys: keys, kind: kind}
	if firsts {
		c.firsts = make([]seal.WriterID, 0, 1)
	}
	return c
}

// Size returns the number of bytes of blobs in the pack so far.
func (c *Copier) Size() int { return max(0, len(c.buf)-c.room) }

// Count returns the number of blobs in the pack so far.
func (c *Copier) Count() int { return len(c.blobs) }

// Add copies a blob of the pack that d describes. It verifies the stored bytes
// by their hash. It returns false if the pack has no room for the blob.
func (c *Copier) Add(d *Directory, b *Blob, stored []byte) (bool, error) {
	if err := b.CheckStored(stored); err != nil {
		return false, err
	}
	part := -1
	for i, p := range c.parts {
		if bytes.Equal(p, d.parts[b.Part]) {
			part = i
			break
		}
	}
	if len(c.blobs) > 0 && (c.Size()+len(stored) > TargetSize || c.pieces+len(b.Pieces) > maxPieces ||
		part < 0 && len(c.parts) == maxParts) {
		return false, nil
	}
	if c.buf == nil {
		c.room = headerFixed + maxParts*(len(seal.WriterID{})+2+len(d.parts[b.Part]))
		c.buf = make([]byte, c.room, c.room+len(stored)+1<<20)
	}
	if part < 0 {
		part = len(c.parts)
		c.parts = append(c.parts, d.parts[b.Part])
		if c.firsts != nil {
			c.firsts = append(c.firsts, d.firsts[b.Part])
		}
	}
	copied := *b
	copied.Part = uint8(part)
	c.buf = append(c.buf, stored...)
	c.blobs = append(c.blobs, copied)
	c.pieces += len(b.Pieces)
	return true, nil
}

// Finish completes the pack and returns its name, bytes and contents. Before it
// returns, it reads the pack back as a reader would, except for the blobs.
func (c *Copier) Finish() (ID, []byte, []Blob, error) {
	salt := make([]byte, 32)
	_, _ = rand.Read(salt)
	h := append([]byte(nil), magicHeader...)
	version := uint16(versionPlain)
	if c.firsts != nil {
		version = versionFirsts
	}
	h = binary.BigEndian.AppendUint16(h, version)
	h = append(h, byte(c.kind), byte(len(c.parts)))
	h = append(h, c.keys.Repo[:]...)
	h = append(h, c.keys.Cert[:]...)
	h = append(h, salt...)
	for i, p := range c.parts {
		if c.firsts != nil {
			h = append(h, c.firsts[i][:]...)
		}
		h = binary.BigEndian.AppendUint16(h, uint16(len(p)))
		h = append(h, p...)
	}
	// Key parts of one kind have equal length. If one is longer nevertheless,
	// the blobs are moved.
	if len(h) > c.room {
		c.buf = append(make([]byte, len(h), len(h)+len(c.buf)-c.room), c.buf[c.room:]...)
		c.room = len(h)
	}
	whole := c.buf[c.room-len(h):]
	copy(whole, h)
	at := uint32(len(h))
	for i := range c.blobs {
		c.blobs[i].Offset = at
		at += c.blobs[i].Stored
	}
	return finish(c.keys, whole, len(h), salt, c.blobs)
}
