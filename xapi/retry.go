package xapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Waits after lost connections: a restart of the toolstack takes a minute or
// two.
const (
	networkAttempts = 10
	networkDelay    = time.Second
	networkMaxDelay = 15 * time.Second
)

// longestWait bounds the wait of a run before one repetition. Codes that need
// waits of hours (an upgrade, a chain to be coalesced) are left to the next
// run.
const longestWait = 5 * time.Minute

// Retry runs op until it succeeds, fails with an error for which the code table
// excludes a retry, or has used up its tries. Lost connections are retried too.
// Retry is for operations that may be repeated: op must be idempotent, or must
// have had no effect when it fails. The waits are those of the table.
func (c *Client) Retry(ctx context.Context, op func(ctx context.Context) error) error {
	pace := c.cfg.pace()
	for tried := 0; ; tried++ {
		err := op(ctx)
		if f, ok := err.(final); ok {
			return f.error
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		info := policy(err)
		if info.Class != RetryYes || tried >= info.Attempts || info.Delay > longestWait {
			return err
		}
		delay := info.Delay
		for range tried {
			if delay *= 2; delay >= info.MaxDelay {
				delay = info.MaxDelay
				break
			}
		}
		c.debug().Debug("pool: trying again", "wait", delay, "error", c.mask(err.Error(), ""))
		if !sleep(ctx, pace(delay)) {
			return err
		}
	}
}

// final is an error that retry returns as it is.
type final struct{ error }

// policy decides whether an error deserves another try.
func policy(err error) CodeInfo {
	var e *Error
	if errors.As(err, &e) {
		info, _ := e.info()
		return info
	}
	var h *HTTPError
	switch {
	case errors.As(err, &h):
		if h.Status == http.StatusRequestTimeout || h.Status >= 500 {
			return CodeInfo{Class: RetryYes, Attempts: 1, Delay: soon, MaxDelay: soon}
		}
	case lostConnection(err):
		return CodeInfo{Class: RetryYes, Attempts: networkAttempts, Delay: networkDelay, MaxDelay: networkMaxDelay}
	}
	return CodeInfo{Class: RetryNo}
}

// lostConnection reports whether err is a failure of the network rather than an
// answer: no host at the address, or a broken connection.
func lostConnection(err error) bool {
	var untrusted *UntrustedHostError
	if errors.As(err, &untrusted) || errors.Is(err, context.Canceled) {
		return false
	}
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		(errors.As(err, &op) && (op.Op == "dial" || op.Op == "read" || op.Op == "write"))
}

// sleep waits for d, and reports whether ctx was still active afterwards.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// detach returns a context for work that must be done even if ctx has ended.
func detach(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}
