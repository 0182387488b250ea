package object

import (
	"context"
	"io"
)

type throttleKey struct{}

// WithThrottle returns a context that limits the rate at which Put sends data:
// before each piece of at most ThrottlePiece bytes, the store calls wait. The
// throttle is part of the context because it belongs to the caller, not to the
// store: it limits the data that one run sends, but not the data that another
// run reads through the same store.
func WithThrottle(ctx context.Context, wait func(ctx context.Context, n int) error) context.Context {
	return context.WithValue(ctx, throttleKey{}, wait)
}

// ThrottlePiece is the greatest number of bytes that a throttled Put sends in
// one piece.
const ThrottlePiece = 256 << 10

// Throttle returns the function that was passed to WithThrottle, or nil.
func Throttle(ctx context.Context) func(ctx context.Context, n int) error {
	wait, _ := ctx.Value(throttleKey{}).(func(ctx context.Context, n int) error)
	return wait
}

// ThrottledReader returns a reader that limits reads from r by the throttle of
// ctx, or r itself if there is none.
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
