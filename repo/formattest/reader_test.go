// Package formattest reads a repository according to docs/format.md alone: this
// file uses none of the project's decoders, so the test fails when page and program
// diverge. It proves that a stranger can write a reader.
package formattest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"golang.org/x/crypto/argon2"
)

var be = binary.BigEndian

// must ends a read with a panic that readRepository recovers. It keeps the reader
// short.
func must(ok bool, format string, args ...any) {
	if !ok {
		panic(fmt.Errorf(format, args...))
	}
}

func get[T any](v T, err error) T {
	must(err == nil, "%v", err)
	return v
}

// Section 4.
type secrets struct {
	Repository     []byte          `json:"repository"`
	CutKey         []byte          `json:"cut_key"`
	IDKey          []byte          `json:"id_key"`
	TreeKey        []byte          `json:"tree_key"`
	CertifyPublic  []byte          `json:"certify_public"`
	CertifySeed    []byte          `json:"certify_seed"`
	DataPrivate    []byte          `json:"data_private"`
	WriterSeed     []byte          `json:"writer_seed"`
	Certificate    []byte          `json:"certificate"`
	Config         json.RawMessage `json:"config"`
	privateDataKey hpke.PrivateKey
}

type reader struct {
	dir string
	k   secrets
	at  map[string]place // by the first 16 bytes of an ID
}

type place struct {
	pack           string
	offset, length uint32
}

func gcm(key []byte) cipher.AEAD { return get(cipher.NewGCM(get(aes.NewCipher(key)))) }

func derive(key, salt []byte, info string) []byte {
	return get(hkdf.Key(sha256.New, key, salt, info, 32))
}

func decode(encoding byte, body []byte, plain uint32) []byte {
	if encoding == 1 {
		d := get(zstd.NewReader(nil))
		defer d.Close()
		body = get(d.DecodeAll(body, nil))
	} else {
		must(encoding == 0, "encoding %d", encoding)
	}
	must(len(body) == int(plain), "%d bytes, not %d", len(body), plain)
	return body
}

func (r *reader) file(name string) []byte { return get(os.ReadFile(filepath.Join(r.dir, name))) }

// names lists all files below a folder.
func (r *reader) names(folder string) (names []string) {
	_ = filepath.WalkDir(filepath.Join(r.dir, folder), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(p, r.dir+"/"))
		}
		return nil
	})
	return names
}

// openSlot is section 4.
func (r *reader) openSlot(password, keyFile []byte) {
	for _, name := range r.names("slots/a") {
		b := r.file(name)
		must(string(b[:4]) == "XKSL" && be.Uint16(b[4:]) == 1, "slot's beginning")
		n := be.Uint32(b[8:])
		var head struct {
			KDF struct {
				Name   string `json:"name"`
				Salt   []byte `json:"salt"`
				Time   uint32 `json:"time"`
				Memory uint32 `json:"memory_kib"`
				Lanes  uint8  `json:"lanes"`
			} `json:"kdf"`
		}
		must(json.Unmarshal(b[12:12+n], &head) == nil, "slot's head")
		secret := keyFile
		if k := head.KDF; k.Name == "argon2id" {
			secret = argon2.IDKey(password, k.Salt, k.Time, k.Memory, k.Lanes, 32)
		}
		plain, err := gcm(derive(secret, head.KDF.Salt, "xenkeep slot")).Open(nil, make([]byte, 12), b[12+n:], b[:12+n])
		if err != nil {
			continue
		}
		must(json.Unmarshal(plain, &r.k) == nil, "secrets")
		r.k.privateDataKey = get(hpke.MLKEM768X25519().NewPrivateKey(r.k.DataPrivate))
		return
	}
	panic(errors.New("no slot opens"))
}

// signed checks the certificate of section 3 and the signature under it.
func (r *reader) signed(cert, message, signature []byte) {
	m := append(append([]byte("xenkeep writer 1"), r.k.Repository...), cert[:33]...)
	must(ed25519.Verify(r.k.CertifyPublic, m, cert[33:97]), "certificate")
	must(ed25519.Verify(cert[1:33], message, signature), "signature")
}

// small is section 6.
func (r *reader) small(name string, kind byte) (head, body []byte) {
	b := r.file(name)
	if name != "config" {
		must(strings.HasSuffix(name, fmt.Sprintf("%x", sha256.Sum256(b))), "%s: name", name)
	}
	must(string(b[:4]) == "XKOB" && be.Uint16(b[4:]) == 1 && b[6] == kind, "%s: beginning", name)
	must(bytes.Equal(b[8:24], r.k.Repository), "%s: repository", name)
	end := len(b) - 64
	sum := sha256.Sum256(b[:end])
	r.signed(b[24:121], append([]byte("xenkeep object 1"), sum[:]...), b[end:])
	at := 157 + int(be.Uint32(b[153:]))
	key := derive(r.k.TreeKey, b[121:153], fmt.Sprintf("xenkeep object %d", kind))
	plain := get(gcm(key).Open(nil, make([]byte, 12), b[at:end], b[:at]))
	return b[157:at], decode(plain[0], plain[5:], be.Uint32(plain[1:]))
}

// readIndex is section 7.
func (r *reader) readIndex() {
	r.at = make(map[string]place)
	for _, name := range r.names("index") {
		head, body := r.small(name, 2)
		packs := int(be.Uint32(head[16:]))
		for i := range packs {
			id := hex.EncodeToString(head[20+40*i:][:32])
			size := be.Uint64(head[20+40*i+32:])
			must(len(r.file("packs/"+id[:2]+"/"+id)) == int(size), "pack %s: size", id)
			n, m, at := int(be.Uint32(body)), int(be.Uint32(body[4:])), be.Uint32(body[8:])
			lengths, counts, ids := body[12:12+4*n], body[12+4*n:12+6*n], body[12+6*n:12+6*n+16*m]
			body = body[12+6*n+16*m:]
			for j := range n {
				length := be.Uint32(lengths[4*j:])
				for range be.Uint16(counts[2*j:]) {
					r.at[string(ids[:16])] = place{id, at, length}
					ids = ids[16:]
				}
				at += length
			}
			must(len(ids) == 0, "%s: IDs left", name)
		}
		must(len(body) == 0, "%s: bytes left", name)
	}
}

// blob is section 8, and section 9's IDs.
func (r *reader) blob(kind byte, id []byte) []byte {
	p, ok := r.at[string(id[:16])]
	must(ok, "no pack holds %x", id)
	b := r.file("packs/" + p.pack[:2] + "/" + p.pack)
	must(fmt.Sprintf("%x", sha256.Sum256(b)) == p.pack, "pack %s: name", p.pack)
	must(string(b[:4]) == "XKPK" && be.Uint16(b[4:]) <= 2 && bytes.Equal(b[8:24], r.k.Repository), "pack %s: header", p.pack)
	trailer := b[len(b)-80:]
	must(string(trailer[76:]) == "XKPE", "pack %s: trailer", p.pack)
	header := b[:be.Uint32(trailer[4:])]
	sealed := b[len(b)-80-int(be.Uint32(trailer)) : len(b)-80]
	h, s := sha256.Sum256(header), sha256.Sum256(sealed)
	r.signed(b[24:121], append(append([]byte("xenkeep pack 1"), h[:]...), s[:]...), trailer[8:72])

	var parts [][]byte
	for rest := header[153:]; len(rest) > 0; {
		if be.Uint16(b[4:]) == 2 { // the first writer
			rest = rest[16:]
		}
		n := be.Uint16(rest)
		parts = append(parts, rest[2:2+n])
		rest = rest[2+n:]
	}
	must(len(parts) == int(b[7]), "pack %s: parts", p.pack)

	t := get(gcm(derive(r.k.TreeKey, b[121:153], "xenkeep pack contents")).Open(nil, make([]byte, 12), sealed, h[:]))
	t = decode(t[0], t[5:], be.Uint32(t[1:]))
	n, m := int(be.Uint32(t)), int(be.Uint32(t[4:]))
	column := func(count, size int, p *[]byte) { *p, t = t[:size*count], t[size*count:] }
	t = t[8:]
	var kinds, encodings, part, numbers, storeds, counts, hashes, ids, plains []byte
	column(n, 1, &kinds)
	column(n, 1, &encodings)
	column(n, 1, &part)
	column(n, 4, &numbers)
	column(n, 4, &storeds)
	column(n, 2, &counts)
	column(n, 16, &hashes)
	column(m, 32, &ids)
	column(m, 4, &plains)
	must(len(t) == 0, "pack %s: table", p.pack)
	at := uint32(len(header))
	for i := range n {
		stored := b[at : at+be.Uint32(storeds[4*i:])]
		pieces := int(be.Uint16(counts[2*i:]))
		if at != p.offset {
			at += uint32(len(stored))
			ids, plains = ids[32*pieces:], plains[4*pieces:]
			continue
		}
		must(kinds[i] == kind && len(stored) == int(p.length), "pack %s: blob %d", p.pack, i)
		hash := blake3.Sum256(stored)
		must(bytes.Equal(hash[:16], hashes[16*i:16*i+16]), "pack %s: hash %d", p.pack, i)
		var key []byte
		if b[6] == 1 {
			key = get(hpke.Open(r.k.privateDataKey, hpke.HKDFSHA256(), hpke.AES256GCM(),
				append([]byte("xenkeep data pack 1"), r.k.Repository...), parts[part[i]]))
		} else {
			key = derive(r.k.TreeKey, parts[part[i]], "xenkeep tree pack")
		}
		nonce := append(make([]byte, 8), numbers[4*i:4*i+4]...)
		aad := []byte{kind, encodings[i]}
		var whole, from, length uint32
		found := false
		for j := range pieces {
			aad = append(append(aad, ids[32*j:32*j+32]...), plains[4*j:4*j+4]...)
			if bytes.Equal(ids[32*j:32*j+32], id) {
				from, length, found = whole, be.Uint32(plains[4*j:]), true
			}
			whole += be.Uint32(plains[4*j:])
		}
		must(found, "pack %s: blob %d does not hold %x", p.pack, i, id)
		plain := decode(encodings[i], get(gcm(key).Open(nil, nonce, stored, aad)), whole)[from : from+length]
		mac := get(blake3.NewKeyed(derive(r.k.IDKey, nil, fmt.Sprintf("xenkeep id %d", kind))))
		_, _ = mac.Write(plain)
		must(bytes.Equal(mac.Sum(nil), id), "piece %x: ID", id)
		return plain
	}
	panic(fmt.Errorf("pack %s: no blob at %d", p.pack, p.offset))
}

// sparse is the bitmap and IDs of nodes and roots, section 9.
func sparse(n int, p []byte, fn func(i int, id []byte)) {
	bits, p := p[:(n+7)/8], p[(n+7)/8:]
	for i := range n {
		if bits[i/8]>>(i%8)&1 == 1 {
			fn(i, p[:32])
			p = p[32:]
		}
	}
	must(len(p) == 0, "bytes left behind the IDs")
}

// disk is section 9.
func (r *reader) disk(root []byte) []byte {
	p := r.blob(5, root)
	must(p[0] == 1, "root's version")
	const block = 2 << 20
	size := int(be.Uint64(p[1:]))
	out := make([]byte, size)
	blocks := (size + block - 1) / block
	sparse((blocks+511)/512, p[9:], func(i int, id []byte) {
		sparse(512, r.blob(4, id), func(j int, id []byte) {
			at := (i*512 + j) * block
			for list := r.blob(3, id); len(list) > 0; {
				v, n := binary.Uvarint(list)
				list = list[n:]
				if v&1 == 1 {
					must(copy(out[at:], r.blob(1, list[:32])) == int(v>>1), "chunk's length")
					list = list[32:]
				}
				at += int(v >> 1)
			}
			must(at == min((i*512+j+1)*block, size), "block list's length")
		})
	})
	return out
}

// snapshot contains the fields of section 7's snapshot that this reader needs.
type snapshot struct {
	VM struct {
		Name string `json:"name"`
	} `json:"vm"`
	Complete bool `json:"complete"`
	Disks    []struct {
		Device string `json:"device"`
		Size   int64  `json:"size"`
		Root   string `json:"root"`
	} `json:"disks"`
	Records []struct {
		Name string `json:"name"`
		ID   string `json:"id"`
	} `json:"records"`
}

// readRepository reads every disk and record of every snapshot, by their names.
func readRepository(dir string, password, keyFile []byte) (disks map[string][]byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			var ok bool
			if err, ok = p.(error); !ok {
				panic(p)
			}
		}
	}()
	r := &reader{dir: dir}
	r.openSlot(password, keyFile)
	head, _ := r.small("config", 9)
	must(bytes.Equal(head, r.k.Config), "config and its copy differ")
	r.readIndex()
	disks = make(map[string][]byte)
	for _, name := range r.names("snapshots") {
		_, body := r.small(name, 1)
		var s snapshot
		must(json.Unmarshal(body, &s) == nil && s.Complete, "snapshot %s", name)
		for _, d := range s.Disks {
			p := r.disk(get(hex.DecodeString(d.Root)))
			must(len(p) == int(d.Size), "disk's size")
			disks[s.VM.Name+" "+d.Device] = p
		}
		for _, rec := range s.Records {
			disks[s.VM.Name+" "+rec.Name] = r.blob(2, get(hex.DecodeString(rec.ID)))
		}
	}
	return disks, nil
}
