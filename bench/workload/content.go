package workload

import (
	"archive/tar"
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

// seeded returns a source of random numbers for one purpose.
func seeded(seed uint64, purpose string) *rand.Rand {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	copy(key[8:], purpose)
	return rand.New(rand.NewChaCha8(key))
}

// WriteNoise writes n bytes that do not compress.
func WriteNoise(w io.Writer, seed uint64, n int64) error {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, err := io.CopyN(w, rand.NewChaCha8(key), n)
	return err
}

var syllables = []string{
	"an", "ber", "co", "da", "el", "fo", "gi", "hu", "in", "ja", "ka", "lo", "mi", "no", "or", "pe",
	"qui", "ra", "se", "ti", "ur", "va", "wen", "xi", "yo", "zu", "stra", "tion", "ment", "ing", "ler", "sen",
}

// vocabulary is a fixed set of words of uneven lengths.
func vocabulary(seed uint64) []string {
	r := seeded(seed, "vocabulary")
	words := make([]string, 4000)
	for i := range words {
		for range 1 + r.IntN(4) {
			words[i] += syllables[r.IntN(len(syllables))]
		}
	}
	return words
}

// text appends n words; the first words of the vocabulary are much more frequent.
func text(b []byte, r *rand.Rand, words []string, n int) []byte {
	for i := range n {
		if i > 0 {
			b = append(b, ' ')
		}
		f := r.Float64()
		b = append(b, words[int(f*f*f*float64(len(words)))]...)
	}
	return b
}

// Database pages are 16 KiB, like those of InnoDB; many servers write 8 KiB pages.
const dbPage = 16 << 10

// fillPage fills one page of a database: a header with page number, log position
// and checksum, rows of text, keys and hashes, and free space at its end.
func fillPage(p []byte, r *rand.Rand, words []string, number, lsn uint64) {
	clear(p)
	row := make([]byte, 0, 1<<10)
	at := 38
	for limit := len(p)*3/4 + r.IntN(len(p)/5); at < limit; {
		row = binary.BigEndian.AppendUint64(row[:0], r.Uint64N(1<<40))
		row = binary.BigEndian.AppendUint64(row, 1_700_000_000+r.Uint64N(1<<24))
		row = text(row, r, words, 4+r.IntN(20))
		for range 3 { // tokens and hashes, as in real tables
			row = binary.LittleEndian.AppendUint64(row, r.Uint64())
		}
		at += copy(p[at:limit+1], row)
	}
	binary.BigEndian.PutUint64(p[4:], number)
	binary.BigEndian.PutUint64(p[16:], lsn)
	binary.BigEndian.PutUint32(p, crc32.ChecksumIEEE(p[4:]))
}

// WriteDatabase writes the pages of a database of size bytes.
func WriteDatabase(w io.Writer, seed uint64, size int64) error {
	return writeDatabase(w, seed, size, vocabulary(7))
}

func writeDatabase(w io.Writer, seed uint64, size int64, words []string) error {
	r, p := seeded(seed, "database"), make([]byte, dbPage)
	for n := range size / dbPage {
		fillPage(p, r, words, uint64(n), r.Uint64N(1<<40))
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// TouchDatabase applies a day's changes to the database at the beginning of a file.
func TouchDatabase(path string, seed uint64, size int64) error {
	return touchDatabase(path, seed, size, vocabulary(7))
}

// touchDatabase writes a fiftieth of a database's pages in place: most of them
// close to each other, like recently used rows, the rest anywhere; one in three is
// only 8 KiB long.
func touchDatabase(path string, seed uint64, size int64, words []string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r, p := seeded(seed, "database, day two"), make([]byte, dbPage)
	pages := size / dbPage
	for range max(pages/50, 1) {
		n := r.Int64N(pages)
		if r.IntN(5) > 0 {
			n = pages*9/10 + r.Int64N(pages/10)
		}
		size := dbPage
		if r.IntN(3) == 0 {
			size /= 2
		}
		fillPage(p[:size], r, words, uint64(n), 1<<41+r.Uint64N(1<<40))
		if _, err := f.WriteAt(p[:size], n*dbPage); err != nil {
			return err
		}
	}
	return f.Close()
}

// writeLog writes lines of a web server's log, at least size bytes.
func writeLog(w io.Writer, seed uint64, from time.Time, size int64, words []string) error {
	r := seeded(seed, "log"+from.String())
	b := bufio.NewWriterSize(w, 1<<16)
	line := make([]byte, 0, 512)
	for n := int64(0); n < size; n += int64(len(line)) {
		from = from.Add(time.Duration(r.Int64N(int64(200 * time.Millisecond))))
		line = fmt.Appendf(line[:0], "10.%d.%d.%d - - [%s] \"GET /%s/%s/%d HTTP/1.1\" %d %d \"-\" \"", r.IntN(4), r.IntN(256), r.IntN(256),
			from.Format("02/Jan/2006:15:04:05 -0700"), words[r.IntN(40)], words[r.IntN(400)], r.IntN(100_000), 200+r.IntN(5)*51, r.IntN(90_000))
		line = append(text(line, r, words[:60], 6), "\"\n"...)
		if _, err := b.Write(line); err != nil {
			return err
		}
	}
	return b.Flush()
}

// writeDump writes an SQL dump of at least size bytes, with extra rows at random
// positions. Except for these, the dump with extra rows is the one without them,
// shifted.
func writeDump(w io.Writer, seed uint64, size int64, extra int, words []string) error {
	r, more := seeded(seed, "dump"), seeded(seed, "dump, extra rows")
	b := bufio.NewWriterSize(w, 1<<16)
	const rowBytes = 200 // approximately
	at := make([]int64, extra)
	for i := range at {
		at[i] = more.Int64N(size / rowBytes)
	}
	slices.Sort(at)
	row := func(line []byte, r *rand.Rand, key int64) []byte {
		line = fmt.Appendf(line, "INSERT INTO `orders` VALUES (%d,'%08x-%04x','", key, r.Uint32(), r.Uint32N(1<<16))
		line = text(line, r, words, 8+r.IntN(16))
		return fmt.Appendf(line, "',%d.%02d,'2025-%02d-%02d %02d:%02d:%02d');\n", r.IntN(900), r.IntN(100), 1+r.IntN(12), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60))
	}
	line := make([]byte, 0, 1<<10)
	for n, written := int64(0), int64(0); written < size; n++ {
		line = row(line[:0], r, n)
		written += int64(len(line))
		for len(at) > 0 && at[0] <= n {
			line, at = row(line, more, 1e9+n), at[1:]
		}
		if _, err := b.Write(line); err != nil {
			return err
		}
	}
	return b.Flush()
}

// writeArchive writes a tar of about size bytes of real files, from the window of
// marks, with extra files of odd lengths between them. Members of a tar are padded
// to 512 bytes, so the data after them moves by an odd multiple of that.
func writeArchive(w io.Writer, seed uint64, files []realFile, win window, size int64, extra int, words []string) error {
	r := seeded(seed, "archive")
	b := bufio.NewWriterSize(w, 1<<18)
	t := tar.NewWriter(b)
	head := func(name string, size int64) error {
		return t.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, ModTime: epoch, Format: tar.FormatPAX})
	}
	var n int64
	gap := size / int64(extra+1)
	next := r.Int64N(gap)
	for i, f := range files {
		if !win.has(f.mark) || f.size > 8*mib || n+f.size > size {
			continue
		}
		data, err := os.ReadFile(f.path)
		if err != nil {
			continue
		}
		if err := head("srv"+f.path, int64(len(data))); err != nil {
			return err
		}
		if _, err := t.Write(data); err != nil {
			return err
		}
		n += f.size
		if extra > 0 && n >= next {
			// One block of header and an even number of blocks of data.
			p := text(nil, r, words, 300)[:513+2*r.IntN(250)]
			if err := head(fmt.Sprintf("srv/new/%06d.txt", i), int64(len(p))); err != nil {
				return err
			}
			if _, err := t.Write(p); err != nil {
				return err
			}
			extra--
			next += gap
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return b.Flush()
}
