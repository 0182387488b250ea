package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// tailSize is how much of the end of a stream is searched for an embedded HTTP
// response: xapi's page has about 600 bytes, but its parameters may contain a
// tool's whole stderr.
const tailSize = 16 << 10

// stream is an input that is read once. It keeps the last bytes received.
type stream struct {
	r      io.Reader
	pos    int64 // bytes received
	total  int64 // the computed length; 0 while unknown
	head   []byte
	tail   []byte // cap 2*tailSize; its last tailSize bytes are valid
	unused []byte // buffer for skipped bytes
}

func newStream(r io.Reader) *stream {
	return &stream{r: r, tail: make([]byte, 0, 2*tailSize)}
}

func (s *stream) readAt(p []byte, off int64) error {
	if off < s.pos {
		return fmt.Errorf("vhd: byte %d is needed, but the stream is at %d: %w", off, s.pos, ErrOrder)
	}
	for off > s.pos {
		if s.unused == nil {
			s.unused = make([]byte, 64<<10)
		}
		if err := s.read(s.unused[:min(off-s.pos, int64(len(s.unused)))]); err != nil {
			return err
		}
	}
	return s.read(p)
}

func (s *stream) read(p []byte) error {
	n, err := io.ReadFull(s.r, p)
	s.pos += int64(n)
	s.remember(p[:n])
	if err != nil {
		return s.ended(err)
	}
	return nil
}

// remember keeps the end of p. It copies 16 KiB per block of 2 MiB.
func (s *stream) remember(p []byte) {
	if len(p) >= tailSize {
		s.tail = append(s.tail[:0], p[len(p)-tailSize:]...)
		return
	}
	if len(s.tail)+len(p) > cap(s.tail) {
		n := copy(s.tail, s.tail[len(s.tail)-tailSize:])
		s.tail = s.tail[:n]
	}
	s.tail = append(s.tail, p...)
}

// embedded looks for an HTTP response at the end of the received bytes.
func (s *stream) embedded() *EmbeddedError {
	tail := s.tail[max(0, len(s.tail)-tailSize):]
	return findEmbedded(tail, s.pos == int64(len(tail)))
}

// ended returns the error for a stream that ended early with err.
func (s *stream) ended(err error) error {
	if e := s.embedded(); e != nil {
		return e
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("vhd: read stream at byte %d: %w", s.pos, err)
	}
	if s.total > 0 {
		return fmt.Errorf("vhd: stream ended after %d of %d bytes: %w", s.pos, s.total, ErrTruncated)
	}
	return fmt.Errorf("vhd: stream ended after %d bytes, within its head: %w", s.pos, ErrTruncated)
}

// reject returns the error for a stream whose head is invalid because of err.
// There is no computed length in that case, so an embedded response may be the
// reason.
func (s *stream) reject(err error) error {
	var known *EmbeddedError
	if errors.As(err, &known) || errors.Is(err, ErrTruncated) {
		return err
	}
	if _, ended := s.drain(); ended {
		if e := s.embedded(); e != nil {
			return e
		}
	}
	return err
}

// drain reads to the end of the stream, at most tailSize bytes. It returns how
// many bytes it read, and whether the stream has ended.
func (s *stream) drain() (n int, ended bool) {
	buf := make([]byte, tailSize+1)
	n, err := io.ReadFull(s.r, buf)
	s.pos += int64(n)
	s.remember(buf[:n])
	return n, err != nil
}

// finish checks the trailing footer and the end of the stream, after all blocks
// were read.
func (s *stream) finish() error {
	foot := make([]byte, footerSize)
	if err := s.readAt(foot, s.total-footerSize); err != nil {
		return err
	}
	more, ended, err := s.atEnd()
	if err != nil {
		return err
	}
	if more > 0 {
		if ended {
			if e := s.embedded(); e != nil {
				return e
			}
		}
		return fmt.Errorf("vhd: stream continues after its end at byte %d: %w", s.total, ErrCorrupt)
	}
	if !bytes.Equal(foot, s.head) {
		return fmt.Errorf("vhd: footer at byte %d differs from the first: %w", s.total-footerSize, ErrCorrupt)
	}
	return nil
}

// atEnd reads on at the expected end. A stream that was cut exactly there (TLS
// without a close_notify) is complete; any other error is returned.
func (s *stream) atEnd() (more int, ended bool, err error) {
	var one [1]byte
	n, err := io.ReadFull(s.r, one[:])
	s.pos += int64(n)
	s.remember(one[:n])
	if n == 1 {
		more, ended = s.drain()
		return more + 1, ended, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, true, nil
	}
	return 0, false, fmt.Errorf("vhd: read stream at byte %d, its end: %w", s.pos, err)
}
