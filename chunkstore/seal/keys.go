// Package seal converts plain bytes to their stored form and back: it
// compresses, encrypts and signs. It contains a repository's keys (Keys), the
// parts for sealing blobs in packs (Compressor, Nonce, NewAEAD), and whole
// small objects (Object). It does no I/O.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
)

// Version is the format version this package writes. Readers refuse newer ones.
const Version = 1

var (
	// ErrCorrupt is the class of all damage: the bytes differ from those that
	// were written. Callers test for it with errors.Is.
	ErrCorrupt = errors.New("corrupt data")
	// ErrJunk is returned for objects that are as they were stored, and that no
	// writer of the repository has made. They have no meaning and do no harm.
	ErrJunk = errors.New("junk: no key of this repository wrote it")
	// ErrForeign is returned for objects of another repository.
	ErrForeign = errors.New("object of another repository")
	// ErrNewer is returned for objects of a newer format than Version.
	ErrNewer = errors.New("written by a newer version of the format")
	// ErrRevoked is returned for objects that a writer wrote after it was
	// revoked.
	ErrRevoked = errors.New("objects written by a revoked key are ignored")
	// ErrNoDataKey is returned if a data pack must be opened, but the slot in
	// use may only write.
	ErrNoDataKey = errors.New("this key can add backups but not open them: a full key is needed")
)

// RepoID is the random identity of a repository.
type RepoID [16]byte

func (r RepoID) String() string { return hex.EncodeToString(r[:]) }

// Parse is the inverse of String.
func (r *RepoID) Parse(text string) error {
	if len(text) == 2*len(r) {
		if _, err := hex.Decode(r[:], []byte(text)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("repository ID %q: %w", text, ErrCorrupt)
}

// WriterID identifies a writer: it is the first 16 bytes of the SHA-256 of its
// public key.
type WriterID [16]byte

// Parse is the inverse of String.
func (w *WriterID) Parse(text string) error {
	if len(text) == 2*len(w) {
		if _, err := hex.Decode(w[:], []byte(text)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("writer ID %q: %w", text, ErrCorrupt)
}

func (w WriterID) String() string { return hex.EncodeToString(w[:]) }

// Role defines the rights of a slot, and therefore of a writer.
type Role uint8

const (
	Full      Role = 1 // holds every key
	WriteOnly Role = 2 // holds all but the private data key and the certifying key
)

func (r Role) String() string {
	switch r {
	case Full:
		return "full"
	case WriteOnly:
		return "write-only"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// certSize is the length of a certificate: role, public key, signature.
const certSize = 1 + ed25519.PublicKeySize + ed25519.SignatureSize

// Cert certifies that a writer belongs to the repository: it contains the
// writer's role and public key, signed by the repository's certifying key.
type Cert [certSize]byte

// Role returns the writer's role.
func (c *Cert) Role() Role { return Role(c[0]) }

// Public returns the writer's Ed25519 public key.
func (c *Cert) Public() ed25519.PublicKey { return ed25519.PublicKey(c[1:33]) }

// Writer returns the writer's ID.
func (c *Cert) Writer() (id WriterID) {
	sum := sha256.Sum256(c.Public())
	copy(id[:], sum[:])
	return id
}

func certMessage(repo RepoID, body []byte) []byte {
	return append(append([]byte("xenkeep writer 1"), repo[:]...), body...)
}

// The HPKE suite of the data key, which format 1 fixes.
var (
	kem  = hpke.MLKEM768X25519()
	kdf  = hpke.HKDFSHA256()
	aead = hpke.AES256GCM()
)

// Keys are a repository's keys, as far as one slot contains them.
type Keys struct {
	Repo RepoID
	Cut  [32]byte // chunker
	ID   [32]byte // chunk IDs
	Tree [32]byte // tree packs, tables of contents, small objects

	DataPublic  hpke.PublicKey
	DataPrivate hpke.PrivateKey // nil in a write-only slot

	CertifyPublic  ed25519.PublicKey
	CertifyPrivate ed25519.PrivateKey // nil in a write-only slot

	Writer ed25519.PrivateKey // the slot's own key
	Cert   Cert               // certificate of Writer

	revoked map[WriterID]map[[32]byte]bool
}

// Revoke makes k refuse everything that a writer signed, except the objects and
// packs whose names are in accepted. If a writer is revoked several times, k
// refuses what any of the revocations refuses. It must not be called after k is in
// use.
func (k *Keys) Revoke(writer WriterID, accepted map[[32]byte]bool) {
	if k.revoked == nil {
		k.revoked = make(map[WriterID]map[[32]byte]bool)
	}
	if before, twice := k.revoked[writer]; twice {
		accepted = maps.Clone(accepted)
		maps.DeleteFunc(accepted, func(name [32]byte, _ bool) bool { return !before[name] })
	}
	k.revoked[writer] = accepted
}

// Revoked reports whether a writer was revoked.
func (k *Keys) Revoked(writer WriterID) bool {
	_, revoked := k.revoked[writer]
	return revoked
}

// AnyRevoked reports whether any writer was revoked.
func (k *Keys) AnyRevoked() bool { return len(k.revoked) > 0 }

// Refuses reports whether an object or pack with this name and writer must be
// refused.
func (k *Keys) Refuses(writer WriterID, name [32]byte) bool {
	accepted, revoked := k.revoked[writer]
	return revoked && !accepted[name]
}

// NewKeys generates the keys of a new repository together with its first
// writer, which has the role Full.
func NewKeys() (*Keys, error) {
	k := new(Keys)
	for _, p := range [][]byte{k.Repo[:], k.Cut[:], k.ID[:], k.Tree[:]} {
		_, _ = rand.Read(p) // never fails, according to crypto/rand
	}
	var err error
	if k.DataPrivate, err = kem.GenerateKey(); err != nil {
		return nil, err
	}
	k.DataPublic = k.DataPrivate.PublicKey()
	if k.CertifyPublic, k.CertifyPrivate, err = ed25519.GenerateKey(nil); err != nil {
		return nil, err
	}
	return k.ForNewWriter(Full)
}

// ForNewWriter returns the keys of a new slot with a role: a copy of k with a
// writer of its own, and without the keys that the role must not have. The role
// of k must be Full.
func (k *Keys) ForNewWriter(role Role) (*Keys, error) {
	if k.CertifyPrivate == nil {
		return nil, errors.New("only a full key can certify a writer")
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	n := *k
	n.Writer = private
	n.Cert[0] = byte(role)
	copy(n.Cert[1:], public)
	copy(n.Cert[33:], ed25519.Sign(k.CertifyPrivate, certMessage(k.Repo, n.Cert[:33])))
	if role != Full {
		n.DataPrivate, n.CertifyPrivate = nil, nil
	}
	return &n, nil
}

// CheckCert verifies that cert was issued by the repository. The role and the
// writer of a certificate mean nothing before.
func (k *Keys) CheckCert(cert *Cert) error {
	if len(k.CertifyPublic) != ed25519.PublicKeySize || !ed25519.Verify(k.CertifyPublic, certMessage(k.Repo, cert[:33]), cert[33:]) {
		return fmt.Errorf("writer %s is not certified by this repository: %w", cert.Writer(), ErrCorrupt)
	}
	return nil
}

// Derive derives 32 bytes from the tree key by HKDF-SHA256.
func (k *Keys) Derive(salt []byte, info string) ([]byte, error) {
	return hkdf.Key(sha256.New, k.Tree[:], salt, info, 32)
}

// NewAEAD returns AES-256-GCM with a 32-byte key.
func NewAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// SealDataKey seals a data pack's key to the repository's public data key.
func (k *Keys) SealDataKey(key []byte) ([]byte, error) {
	return hpke.Seal(k.DataPublic, kdf, aead, k.dataInfo(), key)
}

// OpenDataKey is the inverse of SealDataKey. Without the private key the error
// is ErrNoDataKey.
func (k *Keys) OpenDataKey(sealed []byte) ([]byte, error) {
	if k.DataPrivate == nil {
		return nil, ErrNoDataKey
	}
	key, err := hpke.Open(k.DataPrivate, kdf, aead, k.dataInfo(), sealed)
	if err != nil {
		return nil, fmt.Errorf("key part: %w", ErrCorrupt)
	}
	return key, nil
}

func (k *Keys) dataInfo() []byte {
	return append([]byte("xenkeep data pack 1"), k.Repo[:]...)
}

// Sign signs message with the key of this slot's writer.
func (k *Keys) Sign(message []byte) []byte { return ed25519.Sign(k.Writer, message) }

// Verify checks a signature and the certificate of its writer.
func (k *Keys) Verify(cert *Cert, message, signature []byte) error {
	if err := k.CheckCert(cert); err != nil {
		return err
	}
	if !ed25519.Verify(cert.Public(), message, signature) {
		return fmt.Errorf("signature of writer %s: %w", cert.Writer(), ErrCorrupt)
	}
	return nil
}

// ParseDataPrivate restores the private data key from its serialised form.
func ParseDataPrivate(b []byte) (hpke.PrivateKey, error) { return kem.NewPrivateKey(b) }

// ParseDataPublic restores the public data key from its serialised form.
func ParseDataPublic(b []byte) (hpke.PublicKey, error) { return kem.NewPublicKey(b) }
