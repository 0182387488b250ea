package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// The layout of a small object (snapshot, note, claim, index ...) is
//
//	offset  size  field
//	     0     4  magic "XKOB"
//	     4     2  format version, big-endian (as all integers)
//	     6     1  kind
//	     7     1  zero
//	     8    16  repository ID
//	    24    97  certificate of the writer: role, public key, signature
//	   121    32  salt, random
//	   153     4  length n of the plain head
//	   157     n  plain head: readable without a key
//	 157+n     m  body, sealed
//	   end    64  Ed25519 signature of "xenkeep object 1" and SHA-256 of all before
//
// The body is encrypted with AES-256-GCM (key HKDF(tree key, salt, "xenkeep
// object " kind), nonce zero, associated data: everything before the body). Its
// plain text is one encoding byte, the plain length (4 bytes) and the encoded
// bytes. An object's name is the SHA-256 of all its bytes.
const (
	objectMagic    = "XKOB"
	objectHeadSize = 157
	signatureSize  = 64
	objectMessage  = "xenkeep object 1"

	// ObjectMin is the size of an object with an empty head and no body.
	ObjectMin = objectHeadSize + signatureSize
)

// ObjectKind determines the content of a small object. Its values are part of
// the format.
type ObjectKind uint8

const (
	KindSnapshot  ObjectKind = 1
	KindIndex     ObjectKind = 2
	KindNote      ObjectKind = 3
	KindClaim     ObjectKind = 4
	KindReference ObjectKind = 5 // packs that a run uses but did not write
	KindCondemned ObjectKind = 6 // packs that a pruner intends to delete
	KindRetired   ObjectKind = 7 // a claim that was declared dead
	KindDamage    ObjectKind = 8
	KindConfig    ObjectKind = 9
	KindRevoked   ObjectKind = 10 // a revoked writer
	KindCatalogue ObjectKind = 11 // many snapshot objects, unchanged
	KindOver      ObjectKind = 12 // the end of a dead run, and which of its snapshots are valid
	KindProof     ObjectKind = 13 // packs that a full key has opened completely
	KindForgotten ObjectKind = 14 // snapshots that were forgotten, or brought back
)

// Object is an opened small object.
type Object struct {
	Kind   ObjectKind
	Cert   Cert
	Head   []byte // plain head
	Body   []byte // decrypted
	Stored int    // bytes in storage
}

// SealObject seals and signs body, and returns the object's bytes and name.
// Head remains readable without a key. A body that readers would refuse is an
// error.
func (k *Keys) SealObject(kind ObjectKind, head, body []byte) (data []byte, name string, err error) {
	if most := maxBody(kind, head); int64(len(body)) > most {
		return nil, "", fmt.Errorf("an object of kind %d of %d bytes: readers accept %d at most", kind, len(body), most)
	}
	data = append(data, objectMagic...)
	data = binary.BigEndian.AppendUint16(data, Version)
	data = append(data, byte(kind), 0)
	data = append(data, k.Repo[:]...)
	data = append(data, k.Cert[:]...)
	var salt [32]byte
	_, _ = rand.Read(salt[:])
	data = append(data, salt[:]...)
	data = binary.BigEndian.AppendUint32(data, uint32(len(head)))
	data = append(data, head...)

	c, err := NewCompressor(LevelDefault)
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	packed, enc := c.Compress(nil, body)
	plain := append([]byte{byte(enc)}, binary.BigEndian.AppendUint32(nil, uint32(len(body)))...)
	plain = append(plain, packed...)

	a, err := k.objectAEAD(kind, salt[:])
	if err != nil {
		return nil, "", err
	}
	data = append(data, a.Seal(nil, Nonce(0), plain, data)...)
	sum := sha256.Sum256(data)
	data = append(data, k.Sign(append([]byte(objectMessage), sum[:]...))...)
	return data, Name(data), nil
}

func (k *Keys) objectAEAD(kind ObjectKind, salt []byte) (interface {
	Seal(dst, nonce, plaintext, additionalData []byte) []byte
	Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error)
}, error) {
	key, err := k.Derive(salt, fmt.Sprintf("xenkeep object %d", kind))
	if err != nil {
		return nil, err
	}
	return NewAEAD(key)
}

// Name returns the name of an object that is named by its content: the SHA-256
// in lower-case hexadecimal.
func Name(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// CheckName returns an error unless the name of an object ends in the Name of
// its content.
func CheckName(name string, data []byte) error {
	if !strings.HasSuffix(name, Name(data)) {
		return fmt.Errorf("content does not fit its name: %w", ErrCorrupt)
	}
	return nil
}

// ObjectHead returns the kind and the plain head of an object. It needs no key,
// and does not verify that they are genuine.
func ObjectHead(data []byte) (ObjectKind, []byte, error) {
	if len(data) < objectHeadSize+signatureSize || string(data[:4]) != objectMagic {
		return 0, nil, fmt.Errorf("not an object of a repository: %w", ErrCorrupt)
	}
	if v := binary.BigEndian.Uint16(data[4:]); v > Version {
		return 0, nil, fmt.Errorf("format %d: %w", v, ErrNewer)
	}
	n := int64(binary.BigEndian.Uint32(data[153:]))
	if n > int64(len(data))-objectHeadSize-signatureSize {
		return 0, nil, fmt.Errorf("head length %d: %w", n, ErrCorrupt)
	}
	return ObjectKind(data[6]), data[objectHeadSize : objectHeadSize+n], nil
}

// HeadLength returns the length of the plain head of an object that starts with
// these ObjectMin bytes, which may be wrong.
func HeadLength(start []byte) int64 { return int64(binary.BigEndian.Uint32(start[153:])) }

// ObjectCert returns the certificate in an object, without verifying it. ObjectHead
// must have accepted data before.
func ObjectCert(data []byte) (c Cert) {
	copy(c[:], data[24:])
	return c
}

// ObjectRepo returns the repository ID in an object, without verifying it.
// ObjectHead must have accepted data before.
func ObjectRepo(data []byte) (id RepoID) {
	copy(id[:], data[8:24])
	return id
}

// VerifyObject verifies the writer and the integrity of an object that must be
// of kind, without decrypting it. Of k it needs only Repo and CertifyPublic. Its
// signature is verified first, also if a newer version of the format wrote it,
// because every version keeps the places of the certificate and the signature.
func (k *Keys) VerifyObject(kind ObjectKind, data []byte) (*Object, error) {
	if len(data) < objectHeadSize+signatureSize || string(data[:4]) != objectMagic {
		return nil, fmt.Errorf("not an object of a repository: %w", ErrCorrupt)
	}
	if !bytes.Equal(data[8:24], k.Repo[:]) {
		return nil, ErrForeign
	}
	o := &Object{Kind: kind, Stored: len(data)}
	copy(o.Cert[:], data[24:])
	signed := data[:len(data)-signatureSize]
	sum := sha256.Sum256(signed)
	if err := k.Verify(&o.Cert, append([]byte(objectMessage), sum[:]...), data[len(signed):]); err != nil {
		return nil, err
	}
	got, head, err := ObjectHead(data)
	if err != nil {
		return nil, err
	}
	if got != kind {
		return nil, fmt.Errorf("object of kind %d instead of %d: %w", got, kind, ErrCorrupt)
	}
	o.Head = head
	if k.Refuses(o.Cert.Writer(), sha256.Sum256(data)) {
		return nil, fmt.Errorf("writer %s: %w", o.Cert.Writer(), ErrRevoked)
	}
	return o, nil
}

// OpenNamed opens an object from storage whose name ends in the SHA-256 of its
// content. It distinguishes two kinds of bad objects. If the content does not
// match the name, the object was damaged after it was written: the error is
// ErrCorrupt, and the content that it had is not known. If it matches, but no
// writer of this repository signed it as an object of this kind, it was stored
// like that: the error is ErrJunk, and the object has no meaning.
func (k *Keys) OpenNamed(kind ObjectKind, name string, data []byte) (*Object, error) {
	o, err := k.VerifyNamed(kind, name, data)
	if err != nil {
		return nil, err
	}
	return o, k.decrypt(o, data)
}

// VerifyNamed is OpenNamed without decryption. Of k it needs only Repo and
// CertifyPublic.
func (k *Keys) VerifyNamed(kind ObjectKind, name string, data []byte) (*Object, error) {
	if err := CheckName(name, data); err != nil {
		return nil, err
	}
	o, err := k.VerifyObject(kind, data)
	if err == nil || errors.Is(err, ErrNewer) || errors.Is(err, ErrRevoked) {
		return o, err
	}
	return nil, fmt.Errorf("%w: %v", ErrJunk, err)
}

// An ObjectProof verifies an object whose bytes are passed to Add one after
// another, so that they need not be in memory together.
type ObjectProof struct {
	size, at      int64
	start, end    []byte // the first ObjectMin bytes, and the signature
	whole, signed hash.Hash
}

// NewObjectProof returns a proof for an object of size bytes.
func NewObjectProof(size int64) *ObjectProof {
	return &ObjectProof{size: size, whole: sha256.New(), signed: sha256.New()}
}

// Add adds the next bytes of the object.
func (p *ObjectProof) Add(b []byte) {
	if n := ObjectMin - len(p.start); n > 0 {
		p.start = append(p.start, b[:min(n, len(b))]...)
	}
	_, _ = p.whole.Write(b)
	body := min(max(p.size-signatureSize-p.at, 0), int64(len(b)))
	_, _ = p.signed.Write(b[:body])
	p.end = append(p.end, b[body:]...)
	p.at += int64(len(b))
}

// Sum returns the SHA-256 of the bytes that were added.
func (p *ObjectProof) Sum() [32]byte { return [32]byte(p.whole.Sum(nil)) }

// Verify verifies what Keys.VerifyNamed verifies except for the name, when all
// bytes were added.
func (p *ObjectProof) Verify(k *Keys, kind ObjectKind) error {
	if p.at != p.size || p.size < ObjectMin || string(p.start[:4]) != objectMagic {
		return fmt.Errorf("%w: not an object of a repository", ErrJunk)
	}
	if !bytes.Equal(p.start[8:24], k.Repo[:]) {
		return fmt.Errorf("%w: %v", ErrJunk, ErrForeign)
	}
	cert := Cert(p.start[24:])
	if err := k.Verify(&cert, append([]byte(objectMessage), p.signed.Sum(nil)...), p.end); err != nil {
		return fmt.Errorf("%w: %v", ErrJunk, err)
	}
	if v := binary.BigEndian.Uint16(p.start[4:]); v > Version {
		return fmt.Errorf("format %d: %w", v, ErrNewer)
	}
	if got := ObjectKind(p.start[6]); got != kind {
		return fmt.Errorf("%w: object of kind %d instead of %d", ErrJunk, got, kind)
	}
	if k.Refuses(cert.Writer(), p.Sum()) {
		return fmt.Errorf("writer %s: %w", cert.Writer(), ErrRevoked)
	}
	return nil
}

// Limits of the body of an object before it is compressed (docs/format.md,
// section 6).
const (
	maxSmallBody     = 16 << 20
	maxCatalogueBody = 64 << 20
	maxListBody      = 1 << 30

	// indexPackBody is the greatest length of the part of an index object that
	// describes one pack: 32768 pieces, each in a blob of its own.
	indexPackBody = 12 + 32768*(4+2+16)
)

// maxBody returns the greatest length of the body of an object with this head.
func maxBody(kind ObjectKind, head []byte) int64 {
	switch kind {
	case KindIndex:
		if len(head) < 20 {
			return 0
		}
		return min(maxListBody, int64(binary.BigEndian.Uint32(head[16:]))*indexPackBody)
	case KindReference, KindCondemned, KindDamage, KindRevoked:
		return maxListBody
	case KindCatalogue:
		return maxCatalogueBody
	}
	return maxSmallBody
}

// OpenObject verifies and decrypts an object that must be of kind.
func (k *Keys) OpenObject(kind ObjectKind, data []byte) (*Object, error) {
	o, err := k.VerifyObject(kind, data)
	if err != nil {
		return nil, err
	}
	return o, k.decrypt(o, data)
}

// decrypt sets the body of an object that was verified.
func (k *Keys) decrypt(o *Object, data []byte) error {
	a, err := k.objectAEAD(o.Kind, data[121:153])
	if err != nil {
		return err
	}
	signed := data[:len(data)-signatureSize]
	at := objectHeadSize + len(o.Head)
	plain, err := a.Open(nil, Nonce(0), signed[at:], data[:at])
	if err != nil || len(plain) < 5 {
		return fmt.Errorf("body: %w", ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(plain[1:])
	if int64(n) > maxBody(o.Kind, o.Head) {
		return fmt.Errorf("body of %d bytes: %w", n, ErrCorrupt)
	}
	o.Body, err = Decompress(nil, plain[5:], Encoding(plain[0]), int(n))
	if err != nil {
		return fmt.Errorf("body: %w", err)
	}
	return nil
}
