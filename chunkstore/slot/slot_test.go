package slot

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"xenkeep/chunkstore/seal"
)

var config = json.RawMessage(`{"format":1}`)

func newKeys(t testing.TB) *seal.Keys {
	t.Helper()
	k, err := seal.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func same(t *testing.T, a, b *seal.Keys) {
	t.Helper()
	x, err := marshalSecrets(a, config)
	if err != nil {
		t.Fatal(err)
	}
	y, err := marshalSecrets(b, config)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatal("keys differ")
	}
}

func TestSlots(t *testing.T) {
	full := newKeys(t)
	weak, err := full.ForNewWriter(seal.WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := bytes.Repeat([]byte{3}, 32)
	for _, keys := range []*seal.Keys{full, weak} {
		for _, secret := range []Secret{{Password: []byte("correct horse")}, {KeyFile: keyFile}} {
			data, id, err := Seal(keys, config, secret, "label", time.Unix(1, 0))
			if err != nil {
				t.Fatal(err)
			}
			h, err := ReadHead(data)
			if err != nil || h.ID != id || h.Role != keys.Cert.Role().String() || h.Label != "label" {
				t.Fatalf("head is %+v: %v", h, err)
			}
			got, cfg, err := Open(t.Context(), data, secret)
			if err != nil || !reflect.DeepEqual(cfg, config) {
				t.Fatalf("open: %v", err)
			}
			same(t, keys, got)
			for _, wrong := range []Secret{{Password: []byte("wrong")}, {KeyFile: make([]byte, 32)}} {
				if _, _, err := Open(t.Context(), data, wrong); !errors.Is(err, ErrWrongSecret) {
					t.Fatalf("a wrong secret gives %v", err)
				}
			}
			data[len(data)-1]++
			if _, _, err := Open(t.Context(), data, secret); err == nil {
				t.Fatal("a damaged slot opens")
			}
		}
	}
}

func TestPage(t *testing.T) {
	keys := newKeys(t)
	page, err := Page(keys, config)
	if err != nil {
		t.Fatal(err)
	}
	if len(page) > 4096 {
		t.Errorf("the page has %d characters: too much for one sheet", len(page))
	}
	got, cfg, err := OpenPage(append([]byte("some words before\n"), bytes.ToLower(page[:0])...))
	if err == nil || got != nil || cfg != nil {
		t.Fatal("text without a page opens")
	}
	got, _, err = OpenPage(append([]byte("some words before\n"), page...))
	if err != nil {
		t.Fatal(err)
	}
	same(t, keys, got)
	// Every changed character of the code is detected.
	start := bytes.IndexByte(page, '\n') + 1
	for i := start; i < len(page)-len(pageEnd)-1; i++ {
		if page[i] == ' ' || page[i] == '\n' {
			continue
		}
		bad := bytes.Clone(page)
		if bad[i]++; bad[i] == 'Z'+1 || bad[i] == '9'+1 {
			bad[i] = '!'
		}
		if _, _, err := OpenPage(bad); !errors.Is(err, seal.ErrCorrupt) {
			t.Fatalf("character %d changed: %v", i, err)
		}
	}
}

func TestParseKeyFile(t *testing.T) {
	raw := bytes.Repeat([]byte{0xab}, 32)
	for _, in := range [][]byte{raw, []byte("abababababababababababababababababababababababababababababababab\n")} {
		if got, err := ParseKeyFile(in); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%q: %v", in, err)
		}
	}
	if _, err := ParseKeyFile([]byte("short")); err == nil {
		t.Error("five bytes are taken")
	}
}

// Unlocking a password slot takes at most 0.3 s of CPU time; see the
// benchmark's ns/op (with one lane, so that wall time is CPU time).
func BenchmarkUnlock(b *testing.B) {
	keys := newKeys(b)
	secret := Secret{Password: []byte("correct horse")}
	data, _, err := Seal(keys, config, secret, "", time.Unix(1, 0))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := Open(b.Context(), data, secret); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	keys := newKeys(f)
	secret := Secret{KeyFile: keys.Cut[:]} // random: the key of a fuzzing worker is not the key of the seeds
	data, _, err := Seal(keys, config, secret, "", time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, _, err := Open(t.Context(), p, secret); err == nil && !bytes.Equal(p, data) {
			t.Fatal("a forged slot opens")
		}
	})
}

func FuzzOpenPage(f *testing.F) {
	page, err := Page(newKeys(f), config)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(page)
	f.Fuzz(func(t *testing.T, p []byte) {
		_, _, _ = OpenPage(p)
	})
}
