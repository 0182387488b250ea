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

// ExportOptions defines the disk to export, and how.
type ExportOptions struct {
	VDI Ref
	// Format is FormatVHD (also if empty) or FormatRaw.
	Format string
	// Base makes the export a delta against an older VDI snapshot of the same
	// disk, whose data must still exist; only with FormatVHD.
	Base Ref
	// Host is the address of the host to send the request to; if empty, one
	// that can reach the disk.
	Host string
	// StallTimeout overrides the one of the client's Config.
	StallTimeout time.Duration
}

// Export is the stream of a disk's data from a pool. A reader that implements
// the format reads it to its end, then Finish returns the result of the pool's
// task. It must be closed in any case:
//
//	e, err := c.ExportVDI(ctx, opts)
//	...
//	defer e.Close(ctx)
//	... read e ...
//	err = e.Finish(ctx)
//
// An Export must not be used concurrently.
type Export struct {
	c      *Client
	s      *stream
	body   io.Reader
	plain  bool // the body is the raw connection, without chunked encoding
	format string
	host   string
	task   Ref
	n      int64
	err    error // sticky error; io.EOF at the end
	over   bool
}

// ExportVDI starts an export. The stream ends when ctx ends. For an answer
// other than 200, it returns an *HTTPError whose cause is the pool's error.
func (c *Client) ExportVDI(ctx context.Context, opts ExportOptions) (*Export, error) {
	if opts.Format == "" {
		opts.Format = FormatVHD
	}
	if !opts.Base.IsNull() && opts.Format != FormatVHD {
		// Hosts accept such a request and send zeros for unchanged blocks,
		// which cannot be distinguished from written zeros.
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

// abandon stops a transfer's task, even if ctx has ended. It waits up to grace
// for a task that may still be running on the host.
func (c *Client) abandon(ctx context.Context, task Ref, grace time.Duration) {
	tidy, cancel := detach(ctx, cleanupTimeout)
	defer cancel()
	c.stopTask(tidy, task, grace)
}

// Host returns the address, with port, of the host that sends the data.
func (e *Export) Host() string { return e.host }

// Received returns the number of bytes read so far.
func (e *Export) Received() int64 { return e.n }

// Read reads the next bytes of the stream. If the host sends an error report
// instead of a VHD, Read returns that failure. The end of the stream does not
// imply that the stream is complete. Large buffers avoid copies.
func (e *Export) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	if e.n == 0 && e.plain && e.format == FormatVHD {
		// The host sends the status 200 before it attaches the disk; a failure
		// arrives as a second answer in place of the data.
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

// Finish waits for the result of the pool's task for an export that was read to
// its end. The task ends after the host has detached the disk, so that the disk
// can then be deleted. If the task failed, Finish returns its error in
// preference to that of a broken connection; it returns ErrNoVerdict if the
// task stays pending. Finish must be called at most once; it ends the export.
func (e *Export) Finish(ctx context.Context) error {
	if e.over {
		return errors.New("export: already over")
	}
	var surplus int64
	if e.err == nil { // read up to the end of the connection
		before := e.n
		buf := make([]byte, maxPage)
		for e.err == nil && e.n-before <= 16*maxPage {
			_, _ = e.Read(buf)
		}
		surplus = e.n - before
	}
	switch {
	case e.err == nil: // the stream is far from its end
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

// Close ends an export. If Finish has not ended it, Close breaks it off, and
// cancels and removes its task. It works even if ctx has ended.
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

// end releases the connection and the task. With a grace above zero, it takes
// into account that the task may still be running.
func (e *Export) end(ctx context.Context, grace time.Duration) {
	e.over = true
	if grace > 0 {
		e.s.cut(e.err)
	}
	e.s.close()
	e.c.abandon(ctx, e.task, grace)
}

// ExportMetadata writes the pool's own description of a VM to w: the tar
// archive that /export_metadata returns, without the VM's snapshots.
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
