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

// ImportOptions defines the disk to write to, and how.
type ImportOptions struct {
	VDI Ref
	// Format is FormatVHD (also if empty) or FormatRaw. Absent blocks of a VHD
	// are not written, so the target disk must read as zeros.
	Format string
	// ContentLength is the exact length of the body; hosts use it to find a
	// VHD's trailing footer. With Chunked it may be -1.
	ContentLength int64
	// Chunked means that a raw body consists of pieces, each with its offset
	// (this is not HTTP's chunked encoding).
	Chunked bool
	// Host is the address of the host to send the request to; if empty, one
	// that can reach the disk.
	Host string
	// StallTimeout overrides the one of the client's Config.
	StallTimeout time.Duration
}

// ImportVDI writes a body to a disk and returns the result of the pool's task.
// Hosts answer before they read the body, with a redirect or with 200.
// ImportVDI calls body once, after the 200, with a writer that accepts
// ContentLength bytes. After a failure on the host, that writer fails, and
// ImportVDI returns the pool's error.
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

// MetadataImport defines how ImportMetadata imports an archive.
type MetadataImport struct {
	// Restore keeps the UUIDs and MAC addresses of the archive. A halted VM
	// with the same UUID is replaced: a caller that does not want this must
	// check first.
	Restore bool
	// VDIs maps UUIDs of disks in the archive to UUIDs of disks on this pool.
	// The pool looks for all other disks by their SR and location.
	VDIs map[string]string
	// Disk is one of these disks. It identifies the task while the task exists.
	Disk Ref
}

// ImportMetadata creates VMs from an archive that holds only their records, as
// /export_metadata returns it; their disks must exist. A failed import leaves
// nothing on the pool. If it returns both references and an error, those VMs
// exist.
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
		// The task has ended; this only reads its result.
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

// sendBody sends an import and waits for the result of the pool's task. It also
// reports whether the host may still be processing the body.
//
//	us                      host
//	PUT, head      ------>
//	               <------  200, or a refusal: refusal
//	body           ------>
//	               <------  on failure a second answer, at any time: secondAnswer
//	               <------  end of the connection
//	task           ------>  its result decides: verdict
func (c *Client) sendBody(ctx context.Context, addr string, task Ref, req bulk, body func(w io.Writer) error) (atWork bool, err error) {
	s, resp, addr, err := c.open(ctx, addr, req)
	if err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK {
		return false, c.refusal(ctx, s, resp, addr, req, task)
	}
	defer s.close()

	answer := s.secondAnswer()
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
		// If the host caused the broken connection, its answer, if any, has
		// already been received. Otherwise the failure is ours.
		if !lostConnection(sendErr) {
			return true, sendErr
		}
	}
	wait := max(req.stall, c.cfg.VerdictTimeout) // the host may have much data to flush
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

// secondAnswer reads the rest of an import's answer, which is empty, or contains a
// second answer with the host's failure. That may arrive while the body is still
// being sent; secondAnswer then makes the writes of the body fail. The channel
// receives the answer when the host closes the connection.
func (s *stream) secondAnswer() <-chan []byte {
	answer := make(chan []byte, 1)
	_ = s.conn.SetReadDeadline(time.Time{})
	s.armedRead = time.Now().Add(1000 * time.Hour) // only writes decide whether the transfer has stalled
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
	return answer
}

// bodyWriter limits a body to the announced length: the host would take any
// further byte for the start of the next request.
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
