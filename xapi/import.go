package xapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"
)

// ImportOptions says where a disk's data go.
type ImportOptions struct {
	VDI Ref
	// Format is FormatVHD (also if empty) or FormatRaw. A VHD's absent blocks
	// are not written, so it belongs into a disk that reads as zeros.
	Format string
	// ContentLength is the exact length of the body; hosts look for a VHD's
	// trailing footer by it. With Chunked it may be -1.
	ContentLength int64
	// Chunked says that a raw body is framed as pieces with their offsets
	// (not HTTP's chunked encoding).
	Chunked bool
	// Host is the address of the host to ask; if empty, one that reaches the
	// disk.
	Host string
	// StallTimeout replaces that of the client's Config.
	StallTimeout time.Duration
}

// ImportVDI writes a body into a disk and returns the pool's verdict. Hosts
// answer before they read the body, with a redirect or with 200; only then
// body is called, once, with a writer that takes ContentLength bytes. A
// failure on the host makes that writer fail; the error returned is then the
// pool's.
func (c *Client) ImportVDI(ctx context.Context, opts ImportOptions, body func(w io.Writer) error) error {
	if opts.Format == "" {
		opts.Format = FormatVHD
	}
	if opts.ContentLength < 0 && !opts.Chunked {
		return fmt.Errorf("import %s: the length must be known", opts.VDI)
	}
	addr, err := c.address(ctx, opts.Host, opts.VDI)
	if err != nil {
		return fmt.Errorf("import %s: %w", opts.VDI, err)
	}
	task, err := c.CreateTask(ctx, c.cfg.UserAgent+": import", "import to "+string(opts.VDI))
	if err != nil {
		return fmt.Errorf("import %s: %w", opts.VDI, err)
	}
	atWork, err := c.importVDI(ctx, addr, task, opts, body)
	var grace time.Duration
	if atWork {
		grace = cancelGrace
	}
	c.abandon(ctx, task, grace)
	if err != nil {
		return fmt.Errorf("import %s: %w", opts.VDI, err)
	}
	return nil
}

func (c *Client) importVDI(ctx context.Context, addr string, task Ref, opts ImportOptions, body func(w io.Writer) error) (atWork bool, err error) {
	req := bulk{
		method: http.MethodPut, path: "/import_raw_vdi", length: opts.ContentLength, stall: c.stall(opts.StallTimeout),
		query: [][2]string{{"task_id", string(task)}, {"vdi", string(opts.VDI)}, {"format", opts.Format}},
	}
	if opts.Chunked {
		req.query = append(req.query, [2]string{"chunked", "true"})
	}
	return c.sendBody(ctx, addr, task, req, body)
}

// MetadataImport says how ImportMetadata takes an archive.
type MetadataImport struct {
	// Restore keeps the UUIDs and MAC addresses that the archive tells. A
	// halted VM of the same UUID is replaced: whoever does not want that looks
	// before.
	Restore bool
	// VDIs are the disks of the archive on this pool: UUIDs by those in the
	// archive. Others are looked for by their SR and location.
	VDIs map[string]string
	// Disk is one of these disks, by which the task is known while it is there.
	Disk Ref
}

// ImportMetadata makes VMs of an archive that holds their records alone, as
// /export_metadata gives it: their disks must be there. A failed import leaves
// nothing. References beside an error are VMs that were made all the same.
func (c *Client) ImportMetadata(ctx context.Context, archive []byte, o MetadataImport) ([]Ref, error) {
	task, err := c.CreateTask(ctx, c.cfg.UserAgent+": import metadata", "import to "+string(o.Disk))
	if err != nil {
		return nil, fmt.Errorf("import metadata: %w", err)
	}
	req := bulk{
		method: http.MethodPut, path: "/import_metadata", length: int64(len(archive)), stall: c.cfg.StallTimeout,
		query: [][2]string{{"task_id", string(task)}, {"restore", fmt.Sprint(o.Restore)}},
	}
	for _, old := range slices.Sorted(maps.Keys(o.VDIs)) {
		req.query = append(req.query, [2]string{"vdi:" + old, o.VDIs[old]})
	}
	atWork, err := c.sendBody(ctx, c.Master(), task, req, func(w io.Writer) error {
		_, err := w.Write(archive)
		return err
	})
	var values []string
	if err == nil {
		// It is over; its result is all that is asked for.
		values, err = c.WaitTask(ctx, task)
	}
	var grace time.Duration
	if atWork {
		grace = cancelGrace
	}
	tidy, cancel := detach(ctx, cleanupTimeout)
	defer cancel()
	if late := c.stopTask(tidy, task, grace); len(values) == 0 {
		values = late
	}
	var vms []Ref
	for _, v := range values {
		vms = append(vms, Ref(v))
	}
	if err != nil {
		return vms, fmt.Errorf("import metadata: %w", err)
	}
	if len(vms) == 0 {
		return nil, errors.New("import metadata: task ended without a result")
	}
	return vms, nil
}

// sendBody makes an import and waits for the pool's verdict. It also tells
// whether the host may still be at work on what it was given.
func (c *Client) sendBody(ctx context.Context, addr string, task Ref, req bulk, body func(w io.Writer) error) (atWork bool, err error) {
	s, resp, addr, err := c.open(ctx, addr, req)
	if err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK {
		return false, c.refusal(ctx, s, resp, addr, req, task)
	}
	defer s.close()

	// The rest of the answer is empty, or holds a second answer with the
	// host's failure, which may come while the body is still being sent.
	answer := make(chan []byte, 1)
	_ = s.conn.SetReadDeadline(time.Time{})
	s.armedRead = time.Now().Add(1000 * time.Hour) // writes alone tell whether it stands still
	go func() {
		page := make([]byte, 0, 4096)
		buf := make([]byte, 4096)
		for {
			n, err := s.in.Read(buf)
			page = append(page, buf[:min(n, maxPage-len(page))]...)
			if n > 0 || err != nil {
				s.interrupt(errEndedEarly)
			}
			if err != nil {
				answer <- page
				return
			}
		}
	}()

	w := &bodyWriter{s: s, left: req.length, open: req.length < 0}
	out := bufio.NewWriterSize(w, streamBuffer)
	sendErr := body(out)
	if sendErr == nil {
		sendErr = out.Flush()
	}
	if sendErr == nil && !w.open && w.left > 0 {
		sendErr = fmt.Errorf("body ended %d bytes before the length announced", w.left)
	}
	if ctx.Err() != nil {
		return true, context.Cause(ctx)
	}
	reason := s.reason.Load()
	early := reason != nil && errors.Is(*reason, errEndedEarly)
	if sendErr != nil && !early {
		// A broken connection may be the host's doing, and its answer, if
		// any, lies in the connection already. Else it is ours.
		if !lostConnection(sendErr) {
			return true, sendErr
		}
	}
	wait := max(req.stall, c.cfg.VerdictTimeout) // the host may have much to flush
	if sendErr != nil {
		wait = min(wait, cancelGrace)
	}
	timer := time.AfterFunc(wait, func() { s.cut(&stalledError{wait}) })
	page := <-answer
	timer.Stop()
	if ctx.Err() != nil {
		return true, context.Cause(ctx)
	}
	limit := c.cfg.VerdictTimeout
	if sendErr != nil {
		limit = min(limit, cancelGrace)
	}
	verr := c.verdict(ctx, task, limit)
	var pe *Error
	switch {
	case errors.As(verr, &pe):
		return false, verr
	case verr == nil:
		return false, sendErr
	}
	session, _ := c.current()
	if pe := ParseErrorPage(page); pe != nil {
		return false, c.redact(pe, session)
	}
	if sendErr != nil {
		return false, sendErr
	}
	return false, verr
}

// bodyWriter keeps a body to the length announced: a byte more would be taken
// for the next request.
type bodyWriter struct {
	s    *stream
	left int64
	open bool // no length was announced
}

func (w *bodyWriter) Write(p []byte) (int, error) {
	if w.open {
		return w.s.Write(p)
	}
	if int64(len(p)) > w.left {
		return 0, errors.New("body exceeds the length announced")
	}
	n, err := w.s.Write(p)
	w.left -= int64(n)
	return n, err
}
