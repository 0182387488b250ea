package object

import (
	"context"
	"io"
)

type throttleKey struct{}

// WithThrottle gives a context under which what a Put sends is held back: a
// store asks wait before each piece of at most ThrottlePiece bytes. It lies in
// the context because it is the caller's, not the store's: what one run sends
// is limited, and not what another reads through the same store.
func WithThrottle(ctx context.Context, wait func(ctx context.Context, n int) error) context.Context {
	return context.WithValue(ctx, throttleKey{}, wait)
}

// ThrottlePiece is how many bytes are sent at once under a throttle.
const ThrottlePiece = 256 << 10

// Throttle is what WithThrottle gave, or nil.
func Throttle(ctx context.Context) func(ctx context.Context, n int) error {
	wait, _ := ctx.Value(throttleKey{}).(func(ctx context.Context, n int) error)
	return wait
}

// ThrottledReader holds back what is read from r, under the throttle of ctx;
// without one it is r.
func ThrottledReader(ctx context.Context, r io.ReadSeeker) io.ReadSeeker {
	wait := Throttle(ctx)
	if wait == nil {
		return r
	}
	return &throttledReader{ReadSeeker: r, ctx: ctx, wait: wait}
}

type throttledReader struct {
	io.ReadSeeker
	ctx  context.Context //nolint:containedctx // an io.Reader has no other way
	wait func(ctx context.Context, n int) error
}

func (r *throttledReader) Read(p []byte) (int, error) {
	p = p[:min(len(p), ThrottlePiece)]
	if err := r.wait(r.ctx, len(p)); err != nil {
		return 0, err
	}
	return r.ReadSeeker.Read(p)
}
