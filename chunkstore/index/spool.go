package index

import (
	"errors"
	"io"
	"os"
)

// A spool groups records that begin with a prefix by the first byte of the
// prefix, which is approximately the order of the index. Records that do not
// fit into memory are written to an unlinked file in the index's folder;
// without a folder, all records are in memory.
type spool struct {
	folder folder
	size   int // of a record, bytes
	parts  [spoolParts]spoolPart
	n      int64 // records
	file   *os.File
	next   int64 // the end of the file
	buf    []byte
}

// A spoolPart contains the records with one first byte: up to one block of them
// in memory, the rest in blocks of the file.
type spoolPart struct {
	records []byte
	blocks  []int64 // their offsets in the file
}

const (
	spoolParts = 256
	spoolBlock = 64 << 10 // bytes, approximately
)

func newSpool(f folder, size int) *spool { return &spool{folder: f, size: size} }

// block returns how many bytes of records a block contains.
func (s *spool) block() int { return spoolBlock / s.size * s.size }

// room makes room for a record that begins with the byte first, by writing a
// block to the file if necessary.
func (s *spool) room(first byte) error {
	part := &s.parts[first]
	if len(part.records) < s.block() || s.folder.memory() {
		return nil
	}
	if s.file == nil {
		t, err := s.folder.create()
		if err != nil {
			return err
		}
		s.file = t.file
		_ = os.Remove(s.file.Name())
	}
	if _, err := s.file.WriteAt(part.records, s.next); err != nil {
		return err
	}
	part.blocks = append(part.blocks, s.next)
	s.next += int64(len(part.records))
	part.records = part.records[:0]
	return nil
}

// add adds a record. The caller must have made room for it.
func (s *spool) add(record []byte) {
	part := &s.parts[record[0]]
	part.records = append(part.records, record...)
	s.n++
}

// each calls fn with all records that begin with the byte first, several at a
// time. The records are valid only during the call.
func (s *spool) each(first byte, fn func(records []byte) error) error {
	part := &s.parts[first]
	for _, at := range part.blocks {
		if s.buf == nil {
			s.buf = make([]byte, s.block())
		}
		if n, err := s.file.ReadAt(s.buf, at); n < len(s.buf) {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if err := fn(s.buf); err != nil {
			return err
		}
	}
	return fn(part.records)
}

// count returns the number of records that begin with the byte first.
func (s *spool) count(first byte) int {
	part := &s.parts[first]
	return (len(part.blocks)*s.block() + len(part.records)) / s.size
}

// clear discards all records, and keeps the memory and the file for reuse.
func (s *spool) clear() {
	for i := range s.parts {
		s.parts[i].records, s.parts[i].blocks = s.parts[i].records[:0], s.parts[i].blocks[:0]
	}
	s.n, s.next = 0, 0
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
	s.parts, s.n = [spoolParts]spoolPart{}, 0
}
