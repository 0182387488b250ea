package chunkstore

import (
	"encoding/binary"
	"fmt"

	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/seal"
)

// RunID names a run: 16 random bytes.
type RunID [16]byte

// IndexObject is the stored form of a part of the index: a small object of
// kind index. Its plain head, readable without a key, names the packs it
// covers and the index objects it replaces:
//
//	offset  size  field
//	     0    16  run that wrote it
//	    16     4  number of packs, big-endian (as all integers)
//	     …    40  for each pack: ID (32), size (8)
//	     …     4  number of index objects replaced
//	     …    32  for each: the SHA-256 that names it
//
// Its body, sealed, has for each pack of the head, in the same order: the
// number of blobs (4), the offset of the first (4), then the first 16 bytes of
// each ID, then the stored length of each (4). The blobs follow one another
// without gaps; a merged index object that holds a part of a pack only lists
// the others with sixteen zero bytes in place of the ID.
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
		body = binary.BigEndian.AppendUint32(body, uint32(len(p.Entries)))
		var first uint32
		if len(p.Entries) > 0 {
			first = p.Entries[0].Offset
		}
		body = binary.BigEndian.AppendUint32(body, first)
		for i := range p.Entries {
			body = append(body, p.Entries[i].Prefix[:]...)
		}
		at := first
		for i := range p.Entries {
			if p.Entries[i].Offset != at {
				return nil, "", fmt.Errorf("index of pack %x: a gap at %d", p.Pack[:4], at)
			}
			body = binary.BigEndian.AppendUint32(body, p.Entries[i].Length)
			at += p.Entries[i].Length
		}
	}
	head = binary.BigEndian.AppendUint32(head, uint32(len(o.Replaces)))
	for _, r := range o.Replaces {
		head = append(head, r[:]...)
	}
	data, name, err := keys.SealObject(seal.KindIndex, head, body)
	return data, "index/" + name, err
}

// OpenIndexObject verifies and decodes an index object.
func OpenIndexObject(keys *seal.Keys, data []byte) (*IndexObject, error) {
	obj, err := keys.OpenObject(seal.KindIndex, data)
	if err != nil {
		return nil, err
	}
	o, err := ReadIndexHead(obj.Head)
	if err != nil {
		return nil, err
	}
	return o, decodeIndexBody(o, obj.Body)
}

// ReadIndexHead decodes the plain head: the packs without their entries.
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
		if len(body) < 8 {
			return bad
		}
		n, at := int64(binary.BigEndian.Uint32(body)), int64(binary.BigEndian.Uint32(body[4:]))
		body = body[8:]
		if n*20 > int64(len(body)) {
			return bad
		}
		ids, lengths := body[:n*16], body[n*16:n*20]
		body = body[n*20:]
		entries := make([]index.Entry, 0, n)
		for j := range n {
			e := index.Entry{Prefix: index.Prefix(ids[j*16:]), Offset: uint32(at), Length: binary.BigEndian.Uint32(lengths[j*4:])}
			if at += int64(e.Length); at > 1<<32-1 {
				return bad
			}
			if e.Prefix != (index.Prefix{}) {
				entries = append(entries, e)
			}
		}
		o.Packs[i].Entries = entries
	}
	if len(body) != 0 {
		return bad
	}
	return nil
}
