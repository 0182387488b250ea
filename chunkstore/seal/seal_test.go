package seal

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

func newKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

func TestObjectRoundTrip(t *testing.T) {
	k := newKeys(t)
	weak, err := k.ForNewWriter(WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("abc"), 5000), random(70000)} {
		for _, head := range [][]byte{nil, []byte("head")} {
			data, name, err := weak.SealObject(KindNote, head, body)
			if err != nil {
				t.Fatal(err)
			}
			if name != Name(data) {
				t.Error("the name is not the content's hash")
			}
			o, err := k.OpenObject(KindNote, data)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(o.Body, body) || !bytes.Equal(o.Head, head) || o.Cert != weak.Cert || o.Stored != len(data) || o.Cert.Role() != WriteOnly {
				t.Errorf("object of %d and %d bytes came back otherwise", len(head), len(body))
			}
			kind, plain, err := ObjectHead(data)
			if kind != KindNote || !bytes.Equal(plain, head) || err != nil {
				t.Errorf("head without a key: %v %q %v", kind, plain, err)
			}
		}
	}
}

// No byte of an object can be changed, removed or added.
func TestObjectTamper(t *testing.T) {
	k := newKeys(t)
	data, _, err := k.SealObject(KindSnapshot, []byte("plain"), []byte("a body of some length"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		p := bytes.Clone(data)
		p[i] ^= 0x40
		if _, err := k.OpenObject(KindSnapshot, p); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) && !errors.Is(err, ErrNewer) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := k.OpenObject(KindSnapshot, data[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
	if _, err := k.OpenObject(KindSnapshot, append(bytes.Clone(data), 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte more: %v", err)
	}
	if _, err := k.OpenObject(KindNote, data); !errors.Is(err, ErrCorrupt) {
		t.Errorf("as another kind: %v", err)
	}
	if _, err := newKeys(t).OpenObject(KindSnapshot, data); !errors.Is(err, ErrForeign) {
		t.Errorf("in another repository: %v", err)
	}
	newer := bytes.Clone(data)
	binary.BigEndian.PutUint16(newer[4:], Version+1)
	if _, err := k.OpenNamed(KindSnapshot, Name(newer), newer); !errors.Is(err, ErrJunk) {
		t.Errorf("of a newer format, unsigned: %v", err)
	}
	signed := newer[:len(newer)-signatureSize]
	sum := sha256.Sum256(signed)
	newer = append(signed, k.Sign(append([]byte(objectMessage), sum[:]...))...)
	if _, err := k.OpenObject(KindSnapshot, newer); !errors.Is(err, ErrNewer) {
		t.Errorf("of a newer format: %v", err)
	}
	if _, err := k.OpenNamed(KindSnapshot, Name(newer), newer); !errors.Is(err, ErrNewer) {
		t.Errorf("of a newer format, by its name: %v", err)
	}
}

// An object whose content matches its name is junk if no writer of the repository
// signed it as an object of this kind. An object that does not match its name is
// damaged, whatever is in it.
func TestJunk(t *testing.T) {
	k := newKeys(t)
	data, name, err := k.SealObject(KindNote, nil, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(data)
	forged[24] = byte(WriteOnly) // the role in the certificate
	foreign, _, err := newKeys(t).SealObject(KindNote, nil, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	for what, p := range map[string][]byte{"nothing": {}, "five bytes": []byte("junk!"), "a forged role": forged, "another repository": foreign, "cut": data[:200]} {
		if _, err := k.OpenNamed(KindNote, "notes/"+Name(p), p); !errors.Is(err, ErrJunk) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := k.OpenNamed(KindNote, "notes/"+name, p); errors.Is(err, ErrJunk) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s under a sound object's name: %v", what, err)
		}
	}
	if _, err := k.OpenNamed(KindCondemned, "condemned/"+name, data); !errors.Is(err, ErrJunk) {
		t.Errorf("in another folder: %v", err)
	}
	if _, err := k.OpenNamed(KindNote, "notes/"+name, data); err != nil {
		t.Error(err)
	}
}

// A writer that has the tree key, but no certificate of this repository, cannot
// forge an object.
func TestUncertifiedWriter(t *testing.T) {
	k := newKeys(t)
	thief := *k
	stranger := newKeys(t)
	thief.Writer, thief.Cert = stranger.Writer, stranger.Cert
	data, _, err := thief.SealObject(KindSnapshot, nil, []byte("forged"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.OpenObject(KindSnapshot, data); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a stranger's certificate: %v", err)
	}
	// A write-only writer claims to have the role Full.
	weak, err := k.ForNewWriter(WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	weak.Cert[0] = byte(Full)
	if data, _, err = weak.SealObject(KindConfig, []byte("{}"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := k.OpenObject(KindConfig, data); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a role made up: %v", err)
	}
	if _, err := weak.ForNewWriter(Full); err == nil {
		t.Error("a write-only key certifies writers")
	}
}

func TestDataKey(t *testing.T) {
	k := newKeys(t)
	weak, err := k.ForNewWriter(WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := weak.SealDataKey(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) != 1120+32+16 {
		t.Errorf("a key part of %d bytes", len(sealed))
	}
	key, err := k.OpenDataKey(sealed)
	if err != nil || !bytes.Equal(key, bytes.Repeat([]byte{9}, 32)) {
		t.Errorf("opened %x: %v", key, err)
	}
	if _, err := weak.OpenDataKey(sealed); !errors.Is(err, ErrNoDataKey) {
		t.Errorf("with a write-only key: %v", err)
	}
	sealed[5] ^= 1
	if _, err := k.OpenDataKey(sealed); !errors.Is(err, ErrCorrupt) {
		t.Errorf("changed: %v", err)
	}
	// A key that is sealed for another repository with the same data key.
	other, err := hpke.Seal(k.DataPublic, kdf, aead, append([]byte("xenkeep data pack 1"), make([]byte, 16)...), make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.OpenDataKey(other); !errors.Is(err, ErrCorrupt) {
		t.Errorf("of another repository: %v", err)
	}
}

func TestCompress(t *testing.T) {
	// Larger than the largest window that readers accept, with few matches at
	// short distances.
	large := make([]byte, 20<<20)
	for i := range large {
		large[i] = byte(i*i>>12) ^ byte(i>>9)
	}
	for l := LevelDefault; l <= LevelBest; l++ {
		c, err := NewCompressor(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range [][]byte{nil, []byte("short"), bytes.Repeat([]byte("text "), 8000), random(40000), make([]byte, 96<<10), large} {
			body, enc := c.Compress(nil, p)
			if len(body) > len(p) {
				t.Errorf("%d bytes grew to %d", len(p), len(body))
			}
			if len(p) == len(large) && enc != Zstd {
				t.Error("what repeats is not compressed")
			}
			out, err := Decompress(nil, body, enc, len(p))
			if err != nil || !bytes.Equal(out, p) {
				t.Errorf("%d bytes came back otherwise: %v", len(p), err)
			}
			for _, n := range []int{len(p) - 1, len(p) + 1} {
				if n < 0 {
					continue
				}
				if _, err := Decompress(nil, body, enc, n); !errors.Is(err, ErrCorrupt) {
					t.Errorf("as %d of %d bytes: %v", n, len(p), err)
				}
			}
		}
		c.Close()
	}
	if _, err := Decompress(nil, []byte("x"), 9, 1); !errors.Is(err, ErrNewer) {
		t.Errorf("an unknown encoding: %v", err)
	}
	if _, err := NewCompressor(7); err == nil {
		t.Error("level 7 is one")
	}
}

// A sample detects data that cannot be compressed. Compressible data is
// compressed, even if it is a small part between random data.
func TestCompressLooksFirst(t *testing.T) {
	c, err := NewCompressor(LevelDefault)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	if _, e := c.Compress(nil, noise); e != Plain || !looksRandom(noise) {
		t.Errorf("noise is compressed (random: %v)", looksRandom(noise))
	}
	part := bytes.Clone(noise)
	copy(part[700_000:], bytes.Repeat([]byte("a line of text in the middle of noise\n"), 1000)) // 38 KB
	twice := append(bytes.Clone(noise[:40_000]), noise[:40_000]...)
	sparse := bytes.Clone(noise) // every fourth byte zero
	for i := 0; i < len(sparse); i += 4 {
		sparse[i] = 0
	}
	if looksRandom(sparse) {
		t.Error("every fourth byte is zero, and it looks random")
	}
	for name, p := range map[string][]byte{"text in noise": part, "text": bytes.Repeat([]byte("text, "), 100_000)} {
		out, e := c.Compress(nil, p)
		if e != Zstd || len(out) >= len(p) {
			t.Errorf("%s is not compressed", name)
		}
	}
	// Random data that is repeated looks like random data; this costs space,
	// not safety.
	if _, e := c.Compress(nil, twice); e != Plain {
		t.Log("noise that comes twice is compressed")
	}
}

func BenchmarkCompressNoise(b *testing.B) {
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	c, err := NewCompressor(LevelDefault)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	dst := make([]byte, 0, 2<<20)
	b.SetBytes(int64(len(noise)))
	for b.Loop() {
		c.Compress(dst, noise)
	}
}

func TestNonce(t *testing.T) {
	if bytes.Equal(Nonce(1), Nonce(2)) || len(Nonce(0)) != 12 {
		t.Error("nonces")
	}
}

func FuzzOpenObject(f *testing.F) {
	k := newKeys(f)
	data, _, err := k.SealObject(KindNote, []byte("head"), []byte("body"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("XKOB"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, head, err := ObjectHead(p); err == nil && len(head) > len(p) {
			t.Fatal("a head longer than the object")
		}
		if o, err := k.OpenObject(KindNote, p); err == nil && !bytes.Equal(p, data) {
			t.Fatalf("a forged object opens: %v", o)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	c, err := NewCompressor(LevelDefault)
	if err != nil {
		f.Fatal(err)
	}
	p, _ := c.Compress(nil, bytes.Repeat([]byte("text "), 100))
	f.Add(p, 500)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		if n < 0 || n > 1<<20 {
			return
		}
		if out, err := Decompress(nil, p, Zstd, n); err == nil && len(out) != n {
			t.Fatalf("%d bytes, not %d", len(out), n)
		}
	})
}

func BenchmarkCompress(b *testing.B) {
	text := bytes.Repeat([]byte("The quick brown fox, and so on; "), 1200)
	for i, name := range []string{"default", "fastest", "better"} {
		b.Run(name, func(b *testing.B) {
			c, err := NewCompressor(Level(i))
			if err != nil {
				b.Fatal(err)
			}
			var dst []byte
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				dst, _ = c.Compress(dst, text)
			}
		})
	}
}
