package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

var (
	// ErrRefused says that the server would not open the export: it said so,
	// or it closed the connection when the export was asked for, which is all
	// that xapi-nbd does for a bad session, an unknown VDI or a disk in use.
	ErrRefused = errors.New("export refused")
	// ErrBusy says that the server closed the connection before it said
	// anything: it is full, or NBD is not enabled on any network of the pool.
	// It is also an ErrRefused.
	ErrBusy = fmt.Errorf("closed before the greeting (connection limit, or nbd not enabled): %w", ErrRefused)
	// ErrTLS says that the two sides could not agree on TLS: only one of them
	// demands it, the certificate is not the pinned one, or the TLS handshake
	// failed. A client that wants TLS never goes on without it.
	ErrTLS = errors.New("no agreement on tls")
	// ErrLost says that a connection ended while the export was open.
	ErrLost = errors.New("connection lost")
	// ErrStalled says that a server that owed an answer sent nothing for the
	// stall time. It is also an ErrLost.
	ErrStalled = fmt.Errorf("no progress: %w", ErrLost)
	// ErrProtocol says that the other side sent what the protocol forbids.
	ErrProtocol = errors.New("protocol violation")
	// ErrChanged says that an export has another size than when the disk was
	// opened.
	ErrChanged = errors.New("export changed its size")
	// ErrNoAllocation says that the server does not tell which parts of the
	// export are allocated.
	ErrNoAllocation = errors.New("no block status offered")
	// ErrClosed says that this side closed the connection or the disk.
	ErrClosed = errors.New("nbd: closed")
)

// RemoteError is an error that the server gave for one request; the
// connection goes on. It unwraps to its Errno.
type RemoteError struct {
	Command string
	Errno   Errno
	Message string // the server's words; may be empty
}

func (e *RemoteError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s: server says %v", e.Command, e.Errno)
	}
	return fmt.Sprintf("%s: server says %v: %.200q", e.Command, e.Errno, e.Message)
}

func (e *RemoteError) Unwrap() error { return e.Errno }

// hungUp tells whether err is the other side's end of the connection, with or
// without a good-bye.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// malformed makes a decoder's complaint an ErrProtocol, and leaves other
// errors as they are.
func malformed(err error) error {
	if errors.Is(err, errMalformed) && !errors.Is(err, ErrProtocol) {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return err
}

func isProtocol(err error) bool { return errors.Is(err, ErrProtocol) }
