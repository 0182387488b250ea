package xapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// UnreachableError is returned for an address where no host of a pool answers.
type UnreachableError struct {
	URL  string // scheme, host and port
	Text string // the problem, as a clause with the URL
	Next string // the next step for the user
	Err  error
}

func (e *UnreachableError) Error() string { return e.Text }
func (e *UnreachableError) Unwrap() error { return e.Err }

// Hint returns the next step.
func (e *UnreachableError) Hint() string { return e.Next }

const isItOn = "is the host on, is it the master's address, and is its toolstack running?"

// unreachable explains a failure to reach a host; it returns other errors
// unchanged.
func (c *Client) unreachable(ctx context.Context, endpoint string, err error) error {
	var untrusted *UntrustedHostError
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded) || errors.As(err, &untrusted) {
		return err
	}
	e := &UnreachableError{URL: c.scheme + "://" + endpoint, Err: err}
	var dns *net.DNSError
	var header tls.RecordHeaderError
	var op *net.OpError
	var handshake *handshakeError
	dialing := errors.As(err, &op) && op.Op == "dial"
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		e.Text, e.Next = fmt.Sprintf("%s: no host has the name %s", e.URL, dns.Name), "is the name right? an IP address does as well"
	case errors.As(err, &dns):
		e.Text, e.Next = fmt.Sprintf("%s: the name server does not answer for %s (%s)", e.URL, dns.Name, dns.Err), "look at this machine's DNS, or give the host's IP address"
	case errors.As(err, &header):
		e.Text, e.Next = fmt.Sprintf("%s: what answers does not speak TLS", e.URL), "is the port right? a pool speaks TLS on port 443"
	case errors.As(err, &handshake):
		e.Text, e.Next = fmt.Sprintf("%s: the TLS handshake failed (%s)", e.URL, reason(err)), "is the port right? a pool speaks TLS on port 443; "+isItOn
	case dialing:
		e.Text, e.Next = fmt.Sprintf("nobody answers at %s (%s)", e.URL, reason(err)), isItOn
	default:
		return err
	}
	return e
}

// reason returns the innermost cause, in words.
func reason(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return "no route to the host"
	case errors.Is(err, syscall.ENETUNREACH):
		return "the network is unreachable"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the connection was closed"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// handshakeError marks a failure after the connection was made and before the
// first request was sent.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }
