package chunkstore

import (
	"encoding/binary"
	"fmt"
	"math"

	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
)

// RunID identifies a run. It is 16 random bytes.
type RunID [16]byte

// IndexObject is the stored form of a part of the index: a small object of kind
// index. Its plain head, readable without a key, contains the packs that it
// covers and the index objects that it replaces:
//
//	offset  size  field
//	     0    16  run that wrote it
//	    16     4  number of packs, big-endian (as all integers)
//	     …    40  for each pack: ID (32), size (8)
//	     …     4  number of index objects replaced
//	     …    32  for each: the SHA-256 that names it
//
// Its sealed body contains, for each pack of the head, in the same order: the
// number of blobs (4) and of pieces (4), the offset of the first blob (4), then
// the stored length of each blob (4), the number of its pieces (2), and the
// first 16 bytes of the ID of each piece. There are no gaps between the blobs.
// A merged index object that contains only a part of a pack has sixteen zero
// bytes in place of each other ID.
type IndexObject struct {
	Run      RunID
	Packs    []index.PackEntries
	Replaces [][32]byte
}

// SealIndexObject returns the object's bytes and its name under "index/".
// Entries must be in the order of their offsets and without gaps.
func SealIndexObject(keys *seal.Keys, o *IndexObject) ([]byte, string, error) {
	head := append([]byte(nil), o.Run[:]...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(o.Packs)))
	var body []byte
	for _, p := range o.Packs {
		head = append(head, p.Pack[:]...)
		head = binary.BigEndian.AppendUint64(head, uint64(p.Size))
		var err error
		if body, err = appendIndexPack(body, &p); err != nil {
			return nil, "", err
		}
	}
	head = binary.BigEndian.AppendUint32(head, uint32(len(o.Replaces)))
	for _, r := range o.Replaces {
		head = append(head, r[:]...)
	}
	data, name, err := keys.SealObject(seal.KindIndex, head, body)
	return data, "index/" + name, err
}

// appendIndexPack appends the part of the body that describes one pack.
func appendIndexPack(body []byte, p *index.PackEntries) ([]byte, error) {
	var lengths, counts []byte
	blobs := 0
	for i := 0; i < len(p.Entries); blobs++ {
		e := p.Entries[i]
		n := 1
		for i+n < len(p.Entries) && p.Entries[i+n].Offset == e.Offset {
			n++
		}
		if next := i + n; n > math.MaxUint16 || next < len(p.Entries) && p.Entries[next].Offset != e.Offset+e.Length {
			return nil, fmt.Errorf("index of pack %x: a gap at %d", p.Pack[:4], e.Offset+e.Length)
		}
		lengths = binary.BigEndian.AppendUint32(lengths, e.Length)
		counts = binary.BigEndian.AppendUint16(counts, uint16(n))
		i += n
	}
	var first uint32
	if len(p.Entries) > 0 {
		first = p.Entries[0].Offset
	}
	body = binary.BigEndian.AppendUint32(body, uint32(blobs))
	body = binary.BigEndian.AppendUint32(body, uint32(len(p.Entries)))
	body = binary.BigEndian.AppendUint32(body, first)
	body = append(append(body, lengths...), counts...)
	for i := range p.Entries {
		body = append(body, p.Entries[i].Prefix[:]...)
	}
	return body, nil
}

// OpenIndexObject verifies and decodes an index object.
func OpenIndexObject(keys *seal.Keys, data []byte) (*IndexObject, error) {
	obj, err := keys.OpenObject(seal.KindIndex, data)
	if err != nil {
		return nil, err
	}
	return decodeIndex(obj)
}

// openNamedIndex is OpenIndexObject for an object from storage, whose name is
// verified too. It also returns the writer's certificate.
func openNamedIndex(keys *seal.Keys, name string, data []byte) (*IndexObject, *seal.Cert, error) {
	obj, err := keys.OpenNamed(seal.KindIndex, name, data)
	if err != nil {
		return nil, nil, err
	}
	o, err := decodeIndex(obj)
	return o, &obj.Cert, err
}

func decodeIndex(obj *seal.Object) (*IndexObject, error) {
	o, err := ReadIndexHead(obj.Head)
	if err != nil {
		return nil, err
	}
	return o, decodeIndexBody(o, obj.Body)
}

// ReadIndexHead decodes the plain head. The packs in the result have no
// entries.
func ReadIndexHead(head []byte) (*IndexObject, error) {
	bad := fmt.Errorf("head of an index object: %w", seal.ErrCorrupt)
	o := new(IndexObject)
	if len(head) < 20 {
		return nil, bad
	}
	copy(o.Run[:], head)
	n := int64(binary.BigEndian.Uint32(head[16:]))
	head = head[20:]
	if n*40+4 > int64(len(head)) {
		return nil, bad
	}
	o.Packs = make([]index.PackEntries, n)
	for i := range o.Packs {
		copy(o.Packs[i].Pack[:], head)
		o.Packs[i].Size = int64(binary.BigEndian.Uint64(head[32:]))
		head = head[40:]
	}
	n = int64(binary.BigEndian.Uint32(head))
	head = head[4:]
	if n*32 != int64(len(head)) {
		return nil, bad
	}
	for len(head) > 0 {
		o.Replaces = append(o.Replaces, [32]byte(head))
		head = head[32:]
	}
	return o, nil
}

func decodeIndexBody(o *IndexObject, body []byte) error {
	bad := fmt.Errorf("body of an index object: %w", seal.ErrCorrupt)
	for i := range o.Packs {
		if len(body) < 12 {
			return bad
		}
		n, m := int64(binary.BigEndian.Uint32(body)), int64(binary.BigEndian.Uint32(body[4:]))
		at := int64(binary.BigEndian.Uint32(body[8:]))
		body = body[12:]
		if n*6+m*16 > int64(len(body)) {
			return bad
		}
		lengths, counts, ids := body[:n*4], body[n*4:n*6], body[n*6:n*6+m*16]
		body = body[n*6+m*16:]
		entries := make([]index.Entry, 0, m)
		for j := range n {
			length := binary.BigEndian.Uint32(lengths[j*4:])
			k := int(binary.BigEndian.Uint16(counts[j*2:]))
			if k == 0 || k*16 > len(ids) || at+int64(length) > object.MaxPack {
				return bad
			}
			for range k {
				e := index.Entry{Prefix: index.Prefix(ids), Offset: uint32(at), Length: length}
				if ids = ids[16:]; e.Prefix != (index.Prefix{}) {
					entries = append(entries, e)
				}
			}
			at += int64(length)
		}
		if len(ids) != 0 {
			return bad
		}
		o.Packs[i].Entries = entries
	}
	if len(body) != 0 {
		return bad
	}
	return nil
}
