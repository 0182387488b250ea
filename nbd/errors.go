package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

var (
	// ErrRefused means that the server refused to open the export: it answered
	// so, or it closed the connection after the request, which is xapi-nbd's
	// only answer to an invalid session, an unknown VDI or a disk in use.
	ErrRefused = errors.New("export refused")
	// ErrBusy means that the server closed the connection before it sent
	// anything: its connection limit is reached, or NBD is not enabled on any
	// network of the pool. It is also an ErrRefused.
	ErrBusy = fmt.Errorf("closed before the greeting (connection limit, or nbd not enabled): %w", ErrRefused)
	// ErrTLS means that the two sides could not agree on TLS: only one of them
	// requires it, the certificate is not the pinned one, or the TLS handshake
	// failed. A client that requires TLS never continues without it.
	ErrTLS = errors.New("no agreement on tls")
	// ErrLost means that a connection ended while the export was open.
	ErrLost = errors.New("connection lost")
	// ErrStalled means that a server sent nothing for the stall time while an
	// answer was pending. It is also an ErrLost.
	ErrStalled = fmt.Errorf("no progress: %w", ErrLost)
	// ErrProtocol means that the other side violated the protocol.
	ErrProtocol = errors.New("protocol violation")
	// ErrChanged means that an export has another size than when the disk was
	// opened.
	ErrChanged = errors.New("export changed its size")
	// ErrNoAllocation means that the server does not report which parts of the
	// export are allocated.
	ErrNoAllocation = errors.New("no block status offered")
	// ErrClosed means that this side closed the connection or the disk.
	ErrClosed = errors.New("nbd: closed")
)

// RemoteError is the server's error for one request; the connection stays
// usable. It unwraps to its Errno.
type RemoteError struct {
	Command string
	Errno   Errno
	Message string // the server's text; may be empty
}

func (e *RemoteError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s: server says %v", e.Command, e.Errno)
	}
	return fmt.Sprintf("%s: server says %v: %.200q", e.Command, e.Errno, e.Message)
}

func (e *RemoteError) Unwrap() error { return e.Errno }

// hungUp reports whether err is the end of the connection by the other side,
// with or without a TLS close_notify.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// malformed converts a decoder's error to ErrProtocol, and returns other errors
// unchanged.
func malformed(err error) error {
	if errors.Is(err, errMalformed) && !errors.Is(err, ErrProtocol) {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return err
}

func isProtocol(err error) bool { return errors.Is(err, ErrProtocol) }
