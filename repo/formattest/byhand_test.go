package formattest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"

	"github.com/zeebo/blake3"
)

// vector is a key that was sealed with HPKE as section 3 of the page defines it. It
// does not depend on a draft that may change.
type vector struct {
	Repository  string // hex
	PrivateSeed string // hex, 32 bytes
	Sealed      string // hex, 1168 bytes
	Key         string // hex, 32 bytes
}

func readVector(t *testing.T) (v vector, repository, seed, sealed, key []byte) {
	t.Helper()
	p, err := os.ReadFile("testdata/hpke.json")
	if err == nil {
		err = json.Unmarshal(p, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		to   *[]byte
		text string
	}{{&repository, v.Repository}, {&seed, v.PrivateSeed}, {&sealed, v.Sealed}, {&key, v.Key}} {
		if *f.to, err = hex.DecodeString(f.text); err != nil {
			t.Fatal(err)
		}
	}
	return v, repository, seed, sealed, key
}

// makeVector seals a key for the vector.
func makeVector(t *testing.T) {
	t.Helper()
	seed := bytes.Repeat([]byte{0x5e}, 32)
	private, err := seal.ParseDataPrivate(seed)
	if err != nil {
		t.Fatal(err)
	}
	k := &seal.Keys{DataPublic: private.PublicKey()}
	copy(k.Repo[:], "xenkeep vector 1")
	key := bytes.Repeat([]byte{0xc0}, 32)
	sealed, err := k.SealDataKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p, err := json.MarshalIndent(vector{hex.EncodeToString(k.Repo[:]), hex.EncodeToString(seed), hex.EncodeToString(sealed), hex.EncodeToString(key)}, "", "\t")
	if err == nil {
		err = os.MkdirAll("testdata", 0o755)
	}
	if err == nil {
		err = os.WriteFile("testdata/hpke.json", append(p, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// labeled is LabeledExtract or LabeledExpand of RFC 9180 with the suite of the page.
func labeled(label string, parts ...[]byte) []byte {
	suite := []byte("HPKE\x64\x7a\x00\x01\x00\x02")
	out := append([]byte("HPKE-v1"), suite...)
	out = append(out, label...)
	return append(out, bytes.Join(parts, nil)...)
}

// The page's lines about HPKE suffice to open a sealed key with ML-KEM, X25519, SHA-3,
// HKDF and AES-GCM alone, and the program opens it too.
func TestHPKEByHand(t *testing.T) {
	if *update == "hpke" {
		makeVector(t)
	}
	v, repository, seed, sealed, want := readVector(t)
	private, err := seal.ParseDataPrivate(seed)
	if err != nil {
		t.Fatal(err)
	}
	k := &seal.Keys{DataPrivate: private}
	copy(k.Repo[:], repository)
	if got, err := k.OpenDataKey(sealed); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the program opens %x, %v", got, err)
	}
	if len(sealed) != 1168 || len(v.Sealed) != 2*1168 {
		t.Fatalf("%d bytes are sealed", len(sealed))
	}

	secret := make([]byte, 96)
	h := sha3.NewSHAKE256()
	_, _ = h.Write(seed)
	_, _ = h.Read(secret)
	m := get(mlkem.NewDecapsulationKey768(secret[:64]))
	x := get(ecdh.X25519().NewPrivateKey(secret[64:]))
	encM, encX := sealed[:1088], sealed[1088:1120]
	ssM := get(m.Decapsulate(encM))
	ssX := get(x.ECDH(get(ecdh.X25519().NewPublicKey(encX))))
	shared := sha3.Sum256(slices.Concat(ssM, ssX, encX, x.PublicKey().Bytes(), []byte(`\.//^\`)))

	info := append([]byte("xenkeep data pack 1"), repository...)
	extract := func(salt []byte, label string, ikm []byte) []byte {
		return get(hkdf.Extract(sha256.New, labeled(label, ikm), salt))
	}
	context := slices.Concat([]byte{0}, extract(nil, "psk_id_hash", nil), extract(nil, "info_hash", info))
	secret = extract(shared[:], "secret", nil)
	expand := func(label string, n int) []byte {
		return get(hkdf.Expand(sha256.New, secret, string(append(binary.BigEndian.AppendUint16(nil, uint16(n)), labeled(label, context)...)), n))
	}
	aead := get(cipher.NewGCM(get(aes.NewCipher(expand("key", 32)))))
	got, err := aead.Open(nil, expand("base_nonce", 12), sealed[1120:], nil)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("by hand: %x, %v", got, err)
	}
}

// cutByHand cuts a stretch as section 9 of the page defines it, with the constants of
// docs/cut-constants.txt.
func cutByHand(t *testing.T, key, p []byte) (ends []int) {
	t.Helper()
	text, err := os.ReadFile("../../docs/cut-constants.txt")
	if err != nil {
		t.Fatal(err)
	}
	var constants []byte
	for _, word := range strings.Fields(string(text)) {
		g, err := strconv.ParseUint(word, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		constants = binary.LittleEndian.AppendUint64(constants, g)
	}
	h := get(blake3.NewKeyed(key))
	_, _ = h.Write(constants)
	table := make([]byte, 2048)
	_, _ = h.Digest().Read(table)
	mask := func(k int) (m uint64) {
		for i := range k {
			m |= 1 << (63 - i*(64/k))
		}
		if bits.OnesCount64(m) != k {
			t.Fatalf("mask %x", m)
		}
		return m
	}
	const least, normal, most = 24 << 10, 32 << 10, 96 << 10
	for at := 0; at < len(p); {
		n := min(len(p)-at, most)
		end := n
		if n > least {
			for i, f := least, uint64(0); i < n; i++ {
				f = f<<1 + binary.LittleEndian.Uint64(table[8*int(p[at+i]):])
				m := mask(13)
				if i < normal {
					m = mask(17)
				}
				if f&m == 0 {
					end = i
					break
				}
			}
		}
		at += end
		ends = append(ends, at)
	}
	return ends
}

// The page and its file of constants suffice to cut as the program does.
func TestCutsByHand(t *testing.T) {
	key := bytes.Repeat([]byte{3}, 32)
	p := make([]byte, 2<<20)
	r := rand.New(rand.NewPCG(5, 6))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	c, err := chunk.NewChunker(chunk.DefaultParams(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{len(p), 1 << 20, 100<<10 + 512, 33 << 10, 24 << 10, 512} {
		if want, got := c.Ends(nil, p[:n]), cutByHand(t, key, p[:n]); !slices.Equal(got, want) {
			t.Errorf("%d bytes: cuts at %v, the program's are %v", n, got, want)
		}
	}
}
