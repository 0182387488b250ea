package xapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Formats of disk streams.
const (
	FormatVHD = "vhd"
	FormatRaw = "raw"
)

// ExportOptions says what is to be exported.
type ExportOptions struct {
	VDI Ref
	// Format is FormatVHD (also if empty) or FormatRaw.
	Format string
	// Base makes the export a delta to an older VDI snapshot of the same disk
	// whose data are still there; only with FormatVHD.
	Base Ref
	// Host is the address of the host to ask; if empty, one that reaches the
	// disk.
	Host string
	// StallTimeout replaces that of the client's Config.
	StallTimeout time.Duration
}

// Export is a disk's data on their way out of a pool. It is read to its end by
// whoever knows its format, then asked for its verdict with Finish, and closed
// in any case:
//
//	e, err := c.ExportVDI(ctx, opts)
//	...
//	defer e.Close(ctx)
//	... read e ...
//	err = e.Finish(ctx)
//
// One goroutine at a time may use it.
type Export struct {
	c      *Client
	s      *stream
	body   io.Reader
	plain  bool // the body is the connection as it is, without chunking
	format string
	host   string
	task   Ref
	n      int64
	err    error // sticky; io.EOF at the end
	over   bool
}

// ExportVDI starts an export. The stream ends when ctx does. An answer other
// than 200 is an *HTTPError with the pool's error as its cause.
func (c *Client) ExportVDI(ctx context.Context, opts ExportOptions) (*Export, error) {
	if opts.Format == "" {
		opts.Format = FormatVHD
	}
	if !opts.Base.IsNull() && opts.Format != FormatVHD {
		// Hosts take it and send zeros for what is unchanged, which nothing
		// tells from true zeros.
		return nil, fmt.Errorf("export %s: a delta needs format vhd", opts.VDI)
	}
	addr, err := c.address(ctx, opts.Host, opts.VDI)
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", opts.VDI, err)
	}
	task, err := c.CreateTask(ctx, c.cfg.UserAgent+": export", "export of "+string(opts.VDI))
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", opts.VDI, err)
	}
	req := bulk{
		method: http.MethodGet, path: "/export_raw_vdi", stall: c.stall(opts.StallTimeout),
		query: [][2]string{{"task_id", string(task)}, {"vdi", string(opts.VDI)}, {"format", opts.Format}},
	}
	if !opts.Base.IsNull() {
		req.query = append(req.query, [2]string{"base", string(opts.Base)})
	}
	s, resp, addr, err := c.open(ctx, addr, req)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = c.refusal(ctx, s, resp, addr, req, task)
	}
	if err != nil {
		c.abandon(ctx, task, 0)
		return nil, fmt.Errorf("export %s: %w", opts.VDI, err)
	}
	return &Export{
		c: c, s: s, body: resp.Body, plain: len(resp.TransferEncoding) == 0,
		format: opts.Format, host: addr, task: task,
	}, nil
}

func (c *Client) stall(d time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return c.cfg.StallTimeout
}

// abandon stops a transfer's task whatever became of ctx. Grace is for those
// that may still be at work on the host.
func (c *Client) abandon(ctx context.Context, task Ref, grace time.Duration) {
	tidy, cancel := detach(ctx, cleanupTimeout)
	defer cancel()
	c.stopTask(tidy, task, grace)
}

// Host is the address, with port, of the host that sends.
func (e *Export) Host() string { return e.host }

// Received counts the bytes read so far.
func (e *Export) Received() int64 { return e.n }

// Read reads the stream as it comes. Where the host sends its report of a
// failure instead of a VHD, Read returns that failure. A stream that ends is
// not thereby complete. Large buffers spare copies.
func (e *Export) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	if e.n == 0 && e.plain && e.format == FormatVHD {
		// The head with status 200 goes out before the disk is attached; a
		// failure comes as a second answer in place of the data.
		if start, _ := e.s.in.Peek(5); string(start) == "HTTP/" {
			page, _ := io.ReadAll(io.LimitReader(e.body, maxPage))
			session, _ := e.c.current()
			if pe := ParseErrorPage(page); pe != nil {
				e.err = e.c.redact(pe, session)
			} else {
				e.err = errors.New("host reports a failure without a reason in place of the data")
			}
			return 0, e.err
		}
	}
	n, err := e.body.Read(p)
	e.n += int64(n)
	e.err = err
	return n, err
}

// Finish waits for the pool's verdict on an export that was read to its end.
// The verdict comes when the host has detached the disk, so that what it holds
// can be deleted. A failed task, rather than a broken connection, is the error
// that Finish returns; ErrNoVerdict if the task stays pending. Finish is called
// once; it ends the export.
func (e *Export) Finish(ctx context.Context) error {
	if e.over {
		return errors.New("export: already over")
	}
	var surplus int64
	if e.err == nil { // bring the end of the connection in
		before := e.n
		buf := make([]byte, maxPage)
		for e.err == nil && e.n-before <= 16*maxPage {
			_, _ = e.Read(buf)
		}
		surplus = e.n - before
	}
	switch {
	case e.err == nil: // far from its end
		_ = e.Close(ctx)
		return ErrTrailing
	case errors.Is(e.err, ErrStalled):
		_ = e.Close(ctx)
		return e.err
	case ctx.Err() != nil:
		_ = e.Close(ctx)
		return context.Cause(ctx)
	}
	err := e.c.verdict(ctx, e.task, e.c.cfg.VerdictTimeout)
	e.end(ctx, 0)
	var pe *Error
	switch {
	case errors.As(err, &pe):
		return err
	case e.err != io.EOF:
		return e.err
	case err == nil && surplus > 0:
		return ErrTrailing
	}
	return err
}

// Close ends an export. One that Finish has not ended is broken off, its task
// cancelled and removed, also when ctx has ended.
func (e *Export) Close(ctx context.Context) error {
	if e.over {
		return nil
	}
	if e.err == nil {
		e.err = errors.New("export: closed")
	}
	e.end(ctx, cancelGrace)
	return nil
}

// end lets go of the connection and of the task, which may still be at work if
// there is a grace.
func (e *Export) end(ctx context.Context, grace time.Duration) {
	e.over = true
	if grace > 0 {
		e.s.cut(e.err)
	}
	e.s.close()
	e.c.abandon(ctx, e.task, grace)
}

// ExportMetadata writes the pool's own description of a VM, a tar archive as
// /export_metadata gives it, without those of its snapshots.
func (c *Client) ExportMetadata(ctx context.Context, vm Ref, w io.Writer) error {
	task, err := c.CreateTask(ctx, c.cfg.UserAgent+": export metadata", "metadata of "+string(vm))
	if err != nil {
		return fmt.Errorf("export metadata of %s: %w", vm, err)
	}
	req := bulk{
		method: http.MethodGet, path: "/export_metadata",
		// The host waits up to 120 s for a busy VM before it answers.
		stall: max(c.cfg.StallTimeout, 3*time.Minute),
		query: [][2]string{{"task_id", string(task)}, {"ref", string(vm)}, {"export_snapshots", "false"}},
	}
	err = c.exportMetadata(ctx, req, task, w)
	c.abandon(ctx, task, 0)
	if err != nil {
		return fmt.Errorf("export metadata of %s: %w", vm, err)
	}
	return nil
}

func (c *Client) exportMetadata(ctx context.Context, req bulk, task Ref, w io.Writer) error {
	s, resp, addr, err := c.open(ctx, c.Master(), req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return c.refusal(ctx, s, resp, addr, req, task)
	}
	_, err = io.Copy(w, resp.Body)
	s.close()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	verr := c.verdict(ctx, task, c.cfg.VerdictTimeout)
	var pe *Error
	if err != nil && !errors.As(verr, &pe) {
		return err
	}
	return verr
}
