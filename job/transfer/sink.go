package transfer

import (
	"context"
	"encoding/binary"
	"io"
)

// StreamSink writes a whole disk to W sequentially.
type StreamSink struct{ W io.Writer }

// WriteAt implements disk.Sink. It ignores the offset.
func (s StreamSink) WriteAt(_ context.Context, p []byte, _ int64) error {
	_, err := s.W.Write(p)
	return err
}

// PieceSink writes a disk as framed pieces: byte offset (64 bits) and length (32
// bits), little endian, then the bytes; offset and length zero mark the end (xen-api
// ocaml/vhd-tool/src/chunked.ml).
type PieceSink struct {
	W    io.Writer
	Sent bool // at least one piece was begun
}

func (s *PieceSink) head(off int64, n int) error {
	var h [12]byte
	binary.LittleEndian.PutUint64(h[:], uint64(off))
	binary.LittleEndian.PutUint32(h[8:], uint32(n))
	_, err := s.W.Write(h[:])
	return err
}

// WriteAt implements disk.Sink. It writes p as one piece.
func (s *PieceSink) WriteAt(_ context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil // it would mark the end
	}
	s.Sent = true
	if err := s.head(off, len(p)); err != nil {
		return err
	}
	_, err := s.W.Write(p)
	return err
}

// End writes the end mark.
func (s *PieceSink) End() error { return s.head(0, 0) }
