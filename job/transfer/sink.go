package transfer

import (
	"context"
	"encoding/binary"
	"io"
)

// StreamSink writes a disk front to back, all of it.
type StreamSink struct{ W io.Writer }

func (s StreamSink) WriteAt(_ context.Context, p []byte, _ int64) error {
	_, err := s.W.Write(p)
	return err
}

// PieceSink frames pieces: byte offset (64 bits) and length (32 bits), little
// endian, then the bytes; offset and length zero are the end (xen-api
// ocaml/vhd-tool/src/chunked.ml).
type PieceSink struct {
	W    io.Writer
	Sent bool // a piece was begun
}

func (s *PieceSink) head(off int64, n int) error {
	var h [12]byte
	binary.LittleEndian.PutUint64(h[:], uint64(off))
	binary.LittleEndian.PutUint32(h[8:], uint32(n))
	_, err := s.W.Write(h[:])
	return err
}

func (s *PieceSink) WriteAt(_ context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil // would be the end
	}
	s.Sent = true
	if err := s.head(off, len(p)); err != nil {
		return err
	}
	_, err := s.W.Write(p)
	return err
}

func (s *PieceSink) End() error { return s.head(0, 0) }
