// Package slot stores a repository's keys: sealed under a password or a key
// file (a slot, which is an object of the repository), or in the clear on a
// page for printing. A slot or a page is self-contained: the repository can be
// opened with it and the packs alone.
//
// A slot is stored twice, as slots/a/ID and slots/b/ID:
//
//	offset  size  field
//	     0     4  magic "XKSL"
//	     4     2  format version, big-endian (as all integers)
//	     6     2  zero
//	     8     4  length n of the head
//	    12     n  head: JSON, see Head
//	  12+n     …  secrets: JSON (see secrets), AES-256-GCM
//
// The key is HKDF-SHA256(secret, salt, "xenkeep slot"). The secret is the
// Argon2id hash of the password, or the 32 bytes of the key file. The salt and
// the Argon2id costs are in the head. The nonce is zero, because each written
// slot has a fresh salt. The associated data is all bytes before the secrets.
package slot

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"xenkeep/chunkstore/seal"

	"golang.org/x/crypto/argon2"
)

const (
	magic    = "XKSL"
	headAt   = 12
	maxHead  = 64 << 10
	keyBytes = 32
)

// ErrWrongSecret is returned if a password or key file does not open a slot.
var ErrWrongSecret = errors.New("wrong password or key file")

// KDF describes how the key is derived from a slot's secret.
type KDF struct {
	Name   string `json:"name"` // "argon2id" or "keyfile"
	Salt   []byte `json:"salt"` // 32 bytes
	Time   uint32 `json:"time,omitempty"`
	Memory uint32 `json:"memory_kib,omitempty"`
	Lanes  uint8  `json:"lanes,omitempty"`
}

// The costs of new password slots, which are the second choice of RFC 9106,
// section 4: 0.15 to 0.3 s of CPU time, on up to four cores. Readers use the
// costs in the slot, up to maxMemory and maxTime. Nobody has authenticated a
// slot before it opens, so callers that try several must limit their Cost.
const (
	argonTime   = 3
	argonMemory = 64 << 10 // KiB
	argonLanes  = 4
	maxTime     = 64
	maxMemory   = 1 << 20 // KiB
)

// StandardCost is the Cost of new password slots.
const StandardCost = argonTime * argonMemory

// Cost returns the work, in KiB of memory times passes, that opening a slot with
// this KDF takes. It is 0 for a key file.
func (k KDF) Cost() uint64 {
	if k.Name != "argon2id" {
		return 0
	}
	return uint64(k.Time) * uint64(k.Memory)
}

// Head is the part of a slot that is readable without a key.
type Head struct {
	Format     int       `json:"format"`
	Repository string    `json:"repository"` // hex
	ID         string    `json:"id"`         // the writer's ID, hex
	Role       string    `json:"role"`       // "full" or "write-only"
	Label      string    `json:"label,omitempty"`
	Created    time.Time `json:"created"`
	KDF        KDF       `json:"kdf"`
}

// secrets are the sealed part of a slot, and the content of a page.
type secrets struct {
	Repository     []byte          `json:"repository"`
	Cut            []byte          `json:"cut_key"`
	ID             []byte          `json:"id_key"`
	Tree           []byte          `json:"tree_key"`
	DataPublic     []byte          `json:"data_public,omitempty"`
	DataPrivate    []byte          `json:"data_private,omitempty"`
	CertifyPublic  []byte          `json:"certify_public"`
	CertifyPrivate []byte          `json:"certify_seed,omitempty"`
	Writer         []byte          `json:"writer_seed"`
	Cert           []byte          `json:"certificate"`
	Config         json.RawMessage `json:"config"`
}

// Secret opens a slot. It is a password, or the 32 bytes of a key file.
type Secret struct {
	Password []byte
	KeyFile  []byte
}

func (s Secret) name() (string, error) {
	switch {
	case len(s.KeyFile) == keyBytes && len(s.Password) == 0:
		return "keyfile", nil
	case len(s.Password) > 0 && len(s.KeyFile) == 0:
		return "argon2id", nil
	}
	return "", errors.New("want a password, or a key file of 32 bytes")
}

// Fits reports whether s is of the kind that opens a slot with this KDF.
func (s Secret) Fits(k KDF) bool {
	name, err := s.name()
	return err == nil && name == k.Name
}

// derive returns the key of a slot. Argon2id cannot be interrupted; if ctx ends,
// derive returns, and the computation is abandoned.
func (s Secret) derive(ctx context.Context, k KDF) ([]byte, error) {
	var ikm []byte
	switch k.Name {
	case "argon2id":
		if k.Time < 1 || k.Time > maxTime || k.Memory < 8 || k.Memory > maxMemory || k.Lanes < 1 {
			return nil, fmt.Errorf("argon2id costs: %w", seal.ErrCorrupt)
		}
		done := make(chan []byte, 1)
		go func() { done <- argon2.IDKey(s.Password, k.Salt, k.Time, k.Memory, k.Lanes, keyBytes) }()
		select {
		case ikm = <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case "keyfile":
		ikm = s.KeyFile
	default:
		return nil, fmt.Errorf("key derivation %q: %w", k.Name, seal.ErrNewer)
	}
	return hkdf.Key(sha256.New, ikm, k.Salt, "xenkeep slot", keyBytes)
}

// Seal makes a slot from keys and the repository's config, sealed under secret.
// It returns the slot's bytes and ID.
func Seal(keys *seal.Keys, config json.RawMessage, secret Secret, label string, now time.Time) ([]byte, string, error) {
	name, err := secret.name()
	if err != nil {
		return nil, "", err
	}
	k := KDF{Name: name, Salt: make([]byte, 32)}
	_, _ = rand.Read(k.Salt)
	if name == "argon2id" {
		k.Time, k.Memory, k.Lanes = argonTime, argonMemory, argonLanes
	}
	head := Head{
		Format: seal.Version, Repository: keys.Repo.String(), ID: keys.Cert.Writer().String(),
		Role: keys.Cert.Role().String(), Label: label, Created: now.UTC().Truncate(time.Second), KDF: k,
	}
	h, err := json.Marshal(head)
	if err != nil {
		return nil, "", err
	}
	body, err := marshalSecrets(keys, config)
	if err != nil {
		return nil, "", err
	}
	key, err := secret.derive(context.Background(), k)
	if err != nil {
		return nil, "", err
	}
	a, err := seal.NewAEAD(key)
	if err != nil {
		return nil, "", err
	}
	data := append([]byte(magic), 0, seal.Version, 0, 0)
	data = binary.BigEndian.AppendUint32(data, uint32(len(h)))
	data = append(data, h...)
	data = append(data, a.Seal(nil, seal.Nonce(0), body, data)...)
	return data, head.ID, nil
}

// ReadHead parses the plain part of a slot.
func ReadHead(data []byte) (Head, error) {
	var h Head
	if len(data) < headAt || string(data[:4]) != magic {
		return h, fmt.Errorf("not a key slot: %w", seal.ErrCorrupt)
	}
	if v := binary.BigEndian.Uint16(data[4:]); v > seal.Version {
		return h, fmt.Errorf("format %d: %w", v, seal.ErrNewer)
	}
	n := int64(binary.BigEndian.Uint32(data[8:]))
	if n > maxHead || n > int64(len(data))-headAt {
		return h, fmt.Errorf("head of a key slot: %w", seal.ErrCorrupt)
	}
	if err := json.Unmarshal(data[headAt:headAt+n], &h); err != nil {
		return h, fmt.Errorf("head of a key slot: %v: %w", err, seal.ErrCorrupt)
	}
	return h, nil
}

// Open opens a slot. It returns ErrWrongSecret if secret is of the wrong kind
// or does not match. A damaged slot cannot be distinguished from a wrong
// password. If ctx ends, Open returns without waiting for Argon2id.
func Open(ctx context.Context, data []byte, secret Secret) (*seal.Keys, json.RawMessage, error) {
	h, err := ReadHead(data)
	if err != nil {
		return nil, nil, err
	}
	if name, err := secret.name(); err != nil {
		return nil, nil, err
	} else if name != h.KDF.Name {
		return nil, nil, ErrWrongSecret
	}
	key, err := secret.derive(ctx, h.KDF)
	if err != nil {
		return nil, nil, err
	}
	a, err := seal.NewAEAD(key)
	if err != nil {
		return nil, nil, err
	}
	at := headAt + int(binary.BigEndian.Uint32(data[8:]))
	body, err := a.Open(nil, seal.Nonce(0), data[at:], data[:at])
	if err != nil {
		return nil, nil, ErrWrongSecret
	}
	return unmarshalSecrets(body)
}

func marshalSecrets(k *seal.Keys, config json.RawMessage) ([]byte, error) {
	s := secrets{
		Repository: k.Repo[:], Cut: k.Cut[:], ID: k.ID[:], Tree: k.Tree[:],
		CertifyPublic: k.CertifyPublic, Writer: k.Writer.Seed(), Cert: k.Cert[:], Config: config,
	}
	if k.CertifyPrivate != nil {
		s.CertifyPrivate = k.CertifyPrivate.Seed()
	}
	if k.DataPrivate != nil {
		b, err := k.DataPrivate.Bytes()
		if err != nil {
			return nil, err
		}
		s.DataPrivate = b
	} else {
		s.DataPublic = k.DataPublic.Bytes()
	}
	return json.Marshal(s)
}

func unmarshalSecrets(body []byte) (*seal.Keys, json.RawMessage, error) {
	var s secrets
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, nil, fmt.Errorf("keys: %v: %w", err, seal.ErrCorrupt)
	}
	k := new(seal.Keys)
	for _, f := range []struct{ to, from []byte }{
		{k.Repo[:], s.Repository}, {k.Cut[:], s.Cut}, {k.ID[:], s.ID}, {k.Tree[:], s.Tree}, {k.Cert[:], s.Cert},
	} {
		if copy(f.to, f.from) != len(f.to) || len(f.from) != len(f.to) {
			return nil, nil, fmt.Errorf("keys: a key of %d bytes: %w", len(f.from), seal.ErrCorrupt)
		}
	}
	if len(s.CertifyPublic) != ed25519.PublicKeySize || len(s.Writer) != ed25519.SeedSize ||
		(len(s.CertifyPrivate) != 0 && len(s.CertifyPrivate) != ed25519.SeedSize) {
		return nil, nil, fmt.Errorf("keys: signing keys: %w", seal.ErrCorrupt)
	}
	k.CertifyPublic = s.CertifyPublic
	k.Writer = ed25519.NewKeyFromSeed(s.Writer)
	if len(s.CertifyPrivate) > 0 {
		k.CertifyPrivate = ed25519.NewKeyFromSeed(s.CertifyPrivate)
	}
	var err error
	if len(s.DataPrivate) > 0 {
		if k.DataPrivate, err = seal.ParseDataPrivate(s.DataPrivate); err == nil {
			k.DataPublic = k.DataPrivate.PublicKey()
		}
	} else {
		k.DataPublic, err = seal.ParseDataPublic(s.DataPublic)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("keys: data key: %v: %w", err, seal.ErrCorrupt)
	}
	return k, s.Config, nil
}

// ParseKeyFile parses the content of a key file: 32 raw bytes, or 64
// hexadecimal digits with optional white space.
func ParseKeyFile(b []byte) ([]byte, error) {
	if len(b) == keyBytes {
		return b, nil
	}
	text := make([]byte, 0, len(b))
	for _, c := range b {
		if c != '\n' && c != '\r' && c != ' ' && c != '\t' {
			text = append(text, c)
		}
	}
	if key, err := hex.DecodeString(string(text)); err == nil && len(key) == keyBytes {
		return key, nil
	}
	return nil, errors.New("a key file holds 32 bytes, or 64 hexadecimal digits")
}
