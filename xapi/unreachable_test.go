package xapi

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// Row N19 of the fault list: the error for an unreachable host contains its
// address, the reason in words, and the next step.
func TestUnreachable(t *testing.T) {
	c := &Client{scheme: "https"}
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, x := range []struct {
		err        error
		text, hint string
	}{
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "nobody answers at https://h:443 (connection refused)", "is the host on, is it the master's address"},
		{dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), "nobody answers at https://h:443 (no route to the host)", "is the host on"},
		{dial(os.ErrDeadlineExceeded), "nobody answers at https://h:443 (no answer in time)", "is the host on"},
		{dial(&net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}), "https://h:443: no host has the name h", "is the name right?"},
		{dial(&net.DNSError{Err: "server misbehaving", Name: "h", IsTemporary: true}), "https://h:443: the name server does not answer for h", "DNS"},
		{&handshakeError{io.EOF}, "https://h:443: the TLS handshake failed (the connection was closed)", "is the port right?"},
		{&handshakeError{os.ErrDeadlineExceeded}, "https://h:443: the TLS handshake failed (no answer in time)", "is the port right?"},
	} {
		err := c.unreachable(t.Context(), "h:443", x.err)
		var lost *UnreachableError
		if !errors.As(err, &lost) || !strings.HasPrefix(err.Error(), x.text) || !strings.Contains(lost.Hint(), x.hint) || !errors.Is(err, x.err) {
			t.Errorf("%v: %v, hint %q", x.err, err, lost.Hint())
		}
		if !lostConnection(x.err) != !lostConnection(err) {
			t.Errorf("%v: whether it is tried again changes with the words", x.err)
		}
	}
	for _, err := range []error{io.ErrUnexpectedEOF, &UntrustedHostError{Host: "h"}, errors.New("other")} {
		if got := c.unreachable(t.Context(), "h:443", err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := dial(context.Canceled); c.unreachable(over, "h:443", err) != err {
		t.Error("an interruption counts as an unreachable host")
	}
}
