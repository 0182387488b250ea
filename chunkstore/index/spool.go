package index

import (
	"errors"
	"io"
	"os"
)

// A spool puts records that begin with a prefix in about the order of the index:
// by the first byte of each. What does not fit into memory lies in a file without
// a name in the index's folder; where there is no folder, all is in memory.
type spool struct {
	folder folder
	size   int // of a record, bytes
	parts  [spoolParts]spoolPart
	n      int64 // records
	file   *os.File
	next   int64 // where the file ends
	buf    []byte
}

// A spoolPart holds the records of one first byte: up to a block of them in
// memory, the rest in blocks of the file.
type spoolPart struct {
	records []byte
	blocks  []int64 // where in the file
}

const (
	spoolParts = 256
	spoolBlock = 64 << 10 // bytes, about
)

func newSpool(f folder, size int) *spool { return &spool{folder: f, size: size} }

// block is how many bytes of records a block has.
func (s *spool) block() int { return spoolBlock / s.size * s.size }

// room makes room for a record that begins with this byte, on disk if it must.
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

// add takes a record, for which there is room.
func (s *spool) add(record []byte) {
	part := &s.parts[record[0]]
	part.records = append(part.records, record...)
	s.n++
}

// each gives the records of one first byte, some at a time; they are good during
// the call alone.
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

// count is how many records of one first byte there are.
func (s *spool) count(first byte) int {
	part := &s.parts[first]
	return (len(part.blocks)*s.block() + len(part.records)) / s.size
}

// clear throws all records away, and keeps the room.
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
