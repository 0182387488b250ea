package chunkstore

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"

	"xenkeep/chunkstore/seal"

	"github.com/google/renameio/v2"
)

// author is who wrote a pack, according to its verified signature.
type author struct {
	writer seal.WriterID
	full   bool // with a full key
	own    bool // this machine wrote it, which only its cache folder can prove
	// refuted: this machine has opened it, and it contains wrong blobs.
	refuted bool
}

// authors records the authors of packs in the cache folder of this machine, so that
// the directory of each pack is read once for this. Snapshots that this machine
// published are recorded too. Errors of the folder are ignored: what is not recorded
// is read again, and not trusted until it is proved.
//
// The file consists of records: an ID (32 bytes), the writer (16), flags, and the
// CRC-32 of these. It is only appended to, so that several processes may share it.
// It is read only in a repository that has write-only keys, which an empty file
// called mixed beside it records for good.
type authors struct {
	dir string // "": nothing is stored

	mu    sync.Mutex
	read  int64 // bytes of the file that were read
	known map[[32]byte]author
	mixed bool
}

const (
	authorsName = "authors"
	mixedName   = "mixed"
	authorSize  = 32 + 16 + 1 + 4
	authorFull  = 1
	authorOwn   = 2
	authorWrong = 4
)

func newAuthors(dir string) *authors {
	a := &authors{dir: dir, known: make(map[[32]byte]author)}
	if dir != "" {
		_, err := os.Stat(filepath.Join(dir, mixedName))
		a.mixed = err == nil
	}
	return a
}

// isMixed reports whether the repository has, or had, write-only keys.
func (a *authors) isMixed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mixed
}

func (a *authors) setMixed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mixed {
		return
	}
	a.mixed = true
	if a.dir != "" && os.MkdirAll(a.dir, 0o700) == nil {
		_ = os.WriteFile(filepath.Join(a.dir, mixedName), nil, 0o600)
	}
}

// load reads the records that were added since the last load. It reports whether
// the file has ever been written.
func (a *authors) load() (exists bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dir == "" {
		return false
	}
	file := filepath.Join(a.dir, authorsName)
	info, err := os.Stat(file)
	if err != nil {
		return false
	}
	if info.Size() == a.read {
		return true
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	if int64(len(data)) < a.read { // another process has written it anew
		a.read = 0
	}
	damaged := false
	for data = data[a.read:]; len(data) >= authorSize; {
		r := data[:authorSize]
		if crc32.ChecksumIEEE(r[:authorSize-4]) != binary.BigEndian.Uint32(r[authorSize-4:]) {
			data, damaged = data[1:], true
			continue
		}
		w := author{writer: seal.WriterID(r[32:48]), full: r[48]&authorFull != 0, own: r[48]&authorOwn != 0, refuted: r[48]&authorWrong != 0}
		w.own = w.own || a.known[[32]byte(r)].own
		w.refuted = w.refuted || a.known[[32]byte(r)].refuted
		a.known[[32]byte(r)] = w
		data = data[authorSize:]
	}
	a.read = info.Size()
	if damaged || len(data) > 0 {
		var all bytes.Buffer
		for id, w := range a.known {
			all.Write(authorRecord(id, w))
		}
		if renameio.WriteFile(file, all.Bytes(), 0o600) == nil {
			a.read = int64(all.Len())
		}
	}
	return true
}

func authorRecord(id [32]byte, w author) []byte {
	r := append(id[:], w.writer[:]...)
	var flags byte
	if w.full {
		flags |= authorFull
	}
	if w.own {
		flags |= authorOwn
	}
	if w.refuted {
		flags |= authorWrong
	}
	r = append(r, flags)
	return binary.BigEndian.AppendUint32(r, crc32.ChecksumIEEE(r))
}

// add records authors.
func (a *authors) add(fresh map[[32]byte]author) {
	if len(fresh) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var records []byte
	for id, w := range fresh {
		w.own = w.own || a.known[id].own
		w.refuted = w.refuted || a.known[id].refuted
		a.known[id] = w
		records = append(records, authorRecord(id, w)...)
	}
	if a.dir == "" || os.MkdirAll(a.dir, 0o700) != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(a.dir, authorsName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	_, _ = f.Write(records)
	_ = f.Close()
}

func (a *authors) of(id [32]byte) (author, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, ok := a.known[id]
	return w, ok
}
