package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"xenkeep/internal/disk"
)

const (
	// xapiPiece is how much xapi-nbd reads and sends at a time: 128 pages.
	xapiPiece = 512 << 10
	xapiAlign = 512
	// servePiece is the maximum that a worker holds at a time.
	servePiece = 2 << 20
	// serveWorkers bounds the number of requests of one connection that are
	// processed concurrently, and with servePiece its memory: 16 MiB.
	serveWorkers = 8
	// headRoom precedes the data in a buffer, so that header and data are sent
	// in one write without a copy.
	headRoom = 64
)

// serveInOrder is the transmission phase as in xapi-nbd.
func (s *session) serveInOrder() error {
	in := bufio.NewReaderSize(s.conn, 4096)
	buf := make([]byte, headRoom+xapiPiece)
	var head [requestSize]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return ended(err)
		}
		r, err := parseRequest(head[:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		switch {
		case r.command == cmdDisconnect:
			return nil
		case r.command == cmdWrite:
			_ = s.refuse(r, EPERM)
			return fmt.Errorf("%w: write to a read-only export", ErrProtocol)
		case r.command != cmdRead:
			_ = s.refuse(r, EINVAL)
			return fmt.Errorf("%w: command %d", ErrProtocol, r.command)
		case r.offset%xapiAlign != 0 || r.length%xapiAlign != 0:
			_ = s.refuse(r, EINVAL)
			return fmt.Errorf("%w: read that is not aligned", ErrProtocol)
		}
		if err := s.readInOrder(r, buf); err != nil {
			return err
		}
	}
}

// readInOrder serves one aligned read. It reports success before it reads the
// first byte, so that after an error, including a read beyond the end, it can
// only close the connection.
func (s *session) readInOrder(r request, buf []byte) error {
	if r.length == 0 && s.structured {
		ch := chunk{flags: chunkDone, kind: chunkNone, cookie: r.cookie}
		ch.put(buf)
		_, err := s.conn.Write(buf[:structuredSize])
		return err
	}
	head := simpleSize
	putSimple(buf[headRoom-simpleSize:], 0, r.cookie)
	for off, left := r.offset, int64(r.length); ; {
		n := min(left, xapiPiece)
		data := buf[headRoom : headRoom+n]
		if s.structured {
			head = structuredSize + 8
			ch := chunk{kind: chunkData, cookie: r.cookie, length: uint32(n) + 8}
			if n == left {
				ch.flags = chunkDone
			}
			ch.put(buf[headRoom-head:])
			be.PutUint64(buf[headRoom-8:], off)
		}
		if err := s.readExport(data, off); err != nil {
			if !s.structured {
				_, _ = s.conn.Write(buf[headRoom-head : headRoom])
			}
			return err
		}
		if _, err := s.conn.Write(buf[headRoom-head : headRoom+n]); err != nil {
			return ended(err)
		}
		head = 0
		if off, left = off+uint64(n), left-n; left == 0 {
			return nil
		}
	}
}

// readExport fills p from byte off of the export.
func (s *session) readExport(p []byte, off uint64) error {
	if !s.within(off, uint64(len(p))) {
		return fmt.Errorf("read %d bytes at %d: beyond the export's %d bytes", len(p), off, s.export.Size())
	}
	if n, err := s.export.ReadAt(p, int64(off)); n < len(p) {
		return fmt.Errorf("read %d bytes at %d: export returned %d: %w", len(p), off, n, err)
	}
	return nil
}

func (s *session) within(off, length uint64) bool {
	size := uint64(s.export.Size())
	return off <= size && length <= size-off
}

// ended converts the error of a failed read or write on the connection.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: client left without a word", ErrLost)
	}
	return lost("serve", err)
}

// refuse answers a request with an error.
func (s *session) refuse(r request, errno Errno) error {
	var b [structuredSize + 6]byte
	if s.structured {
		ch := chunk{flags: chunkDone, kind: chunkError, cookie: r.cookie, length: 6}
		ch.put(b[:])
		be.PutUint32(b[structuredSize:], uint32(errno))
		_, err := s.conn.Write(b[:])
		return err
	}
	putSimple(b[:], errno, r.cookie)
	_, err := s.conn.Write(b[:simpleSize])
	return err
}

// transmission is the transmission phase of a session that processes several
// requests concurrently.
type transmission struct {
	*session
	requests chan request
	workers  sync.WaitGroup

	send sync.Mutex // held for each whole message
	err  error      // the first failure of a worker; guarded by send
}

// serve is the transmission phase in which requests are answered in the order
// of their completion.
func (s *session) serve() error {
	t := &transmission{session: s, requests: make(chan request)}
	err := t.receive()
	close(t.requests)
	if err != nil {
		s.conn.Close() // workers that are writing must not block
	}
	t.workers.Wait()
	if t.err != nil && !errors.Is(err, ErrProtocol) {
		return t.err
	}
	return err
}

// receive reads requests until the client leaves.
func (t *transmission) receive() error {
	in := bufio.NewReaderSize(t.conn, 16<<10)
	var head [requestSize]byte
	running := 0
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return ended(err)
		}
		r, err := parseRequest(head[:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		switch r.command {
		case cmdDisconnect:
			return nil
		case cmdWrite:
			// Its data must be read to find the next request.
			if r.length > maxPayload {
				return fmt.Errorf("%w: write of %d bytes", ErrProtocol, r.length)
			}
			if _, err := in.Discard(int(r.length)); err != nil {
				return ended(err)
			}
		}
		select {
		case t.requests <- r:
			continue
		default:
		}
		if running < serveWorkers {
			running++
			t.workers.Go(t.work)
		}
		t.requests <- r
	}
}

// work answers requests with a buffer of its own. After a failure it only
// empties the queue; the receiver then finds the connection closed.
func (t *transmission) work() {
	w := &worker{transmission: t}
	for r := range t.requests {
		if err := w.answer(r); err != nil {
			t.send.Lock()
			if t.err == nil {
				t.err = err
			}
			t.send.Unlock()
			t.conn.Close()
		}
	}
}

type worker struct {
	*transmission
	buf []byte
	all [1]Extent // for exports without Extents
}

// room returns a buffer for n bytes after headRoom.
func (w *worker) room(n int) []byte {
	if need := headRoom + n; len(w.buf) < need {
		size := headRoom + 64<<10
		for size < need {
			size = headRoom + 2*(size-headRoom)
		}
		w.buf = make([]byte, size)
	}
	return w.buf[:headRoom+n]
}

func (w *worker) write(b []byte) error {
	w.send.Lock()
	defer w.send.Unlock()
	if w.err != nil {
		return w.err
	}
	if _, err := w.conn.Write(b); err != nil {
		return ended(err)
	}
	return nil
}

func (w *worker) fail(r request, errno Errno) error {
	w.send.Lock()
	defer w.send.Unlock()
	if err := w.refuse(r, errno); err != nil {
		return ended(err)
	}
	return nil
}

func (w *worker) answer(r request) error {
	known := uint16(0)
	switch r.command {
	case cmdRead:
		if w.structured {
			known = cmdFlagDF
		}
	case cmdBlockStatus:
		known = cmdFlagReqOne
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		return w.fail(r, EPERM)
	case cmdFlush:
		return w.succeed(r)
	default:
		return w.fail(r, EINVAL)
	}
	if r.flags&^known != 0 || !w.within(r.offset, uint64(r.length)) {
		return w.fail(r, EINVAL)
	}
	switch {
	case r.command == cmdBlockStatus && (!w.allocation || w.metaName != w.name || r.length == 0):
		return w.fail(r, EINVAL)
	case r.command == cmdBlockStatus:
		return w.blockStatus(r)
	case r.length > maxPayload && w.structured:
		return w.fail(r, EOVERFLOW)
	case r.length > maxPayload:
		return w.fail(r, EINVAL)
	case r.length == 0:
		return w.succeed(r)
	case w.structured && r.flags&cmdFlagDF == 0:
		return w.readChunks(r)
	}
	return w.readWhole(r)
}

// succeed answers a request whose answer has no data.
func (w *worker) succeed(r request) error {
	var b [structuredSize]byte
	if w.structured {
		ch := chunk{flags: chunkDone, kind: chunkNone, cookie: r.cookie}
		ch.put(b[:])
		return w.write(b[:])
	}
	putSimple(b[:], 0, r.cookie)
	return w.write(b[:simpleSize])
}

// readWhole answers a read with one header and all the data: a simple reply, or
// the single chunk for a client that requested just one. Only the first piece
// is read before the header is sent.
func (w *worker) readWhole(r request) error {
	n := min(int(r.length), servePiece)
	buf := w.room(n)
	if err := w.readExport(buf[headRoom:], r.offset); err != nil {
		return w.fail(r, EIO)
	}
	head := headRoom - simpleSize
	if w.structured {
		head = headRoom - structuredSize - 8
		ch := chunk{kind: chunkData, cookie: r.cookie, length: r.length + 8}
		if n == int(r.length) {
			ch.flags = chunkDone
		}
		ch.put(buf[head:])
		be.PutUint64(buf[headRoom-8:], r.offset)
	} else {
		putSimple(buf[head:], 0, r.cookie)
	}
	if n == int(r.length) {
		return w.write(buf[head:])
	}
	w.send.Lock()
	defer w.send.Unlock()
	var failed error
	for off, left := r.offset, int(r.length); ; {
		if _, err := w.conn.Write(buf[head:]); err != nil {
			return ended(err)
		}
		off, left = off+uint64(n), left-n
		if left == 0 {
			break
		}
		n = min(left, servePiece)
		head = headRoom
		buf = buf[:headRoom+n]
		if failed == nil {
			failed = w.readExport(buf[headRoom:], off)
		}
		if failed != nil {
			if !w.structured {
				return failed // a simple reply cannot turn into an error any more
			}
			clear(buf[headRoom:])
		}
	}
	switch {
	case failed != nil:
		return w.refuse(r, EIO)
	case w.structured:
		ch := chunk{flags: chunkDone, kind: chunkNone, cookie: r.cookie}
		ch.put(buf)
		_, err := w.conn.Write(buf[:structuredSize])
		return err
	}
	return nil
}

// readChunks answers a read with a chunk per piece, and zeros as holes.
func (w *worker) readChunks(r request) error {
	off, left := int64(r.offset), int64(r.length)
	extents, err := w.extents(off, left)
	if err != nil {
		return w.fail(r, EIO)
	}
	for _, e := range extents {
		for e.Length > 0 {
			n := min(e.Length, servePiece)
			if e.Zero {
				n = e.Length
			}
			flags := uint16(0)
			if left -= n; left == 0 {
				flags = chunkDone
			}
			if e.Zero {
				err = w.hole(r, flags, e.Offset, n)
			} else {
				var ok bool
				if ok, err = w.data(r, flags, e.Offset, n); !ok {
					return err
				}
			}
			if err != nil {
				return err
			}
			e.Offset += n
			e.Length -= n
		}
	}
	return nil
}

func (w *worker) hole(r request, flags uint16, off, n int64) error {
	var b [structuredSize + 12]byte
	ch := chunk{flags: flags, kind: chunkHole, cookie: r.cookie, length: 12}
	ch.put(b[:])
	be.PutUint64(b[structuredSize:], uint64(off))
	be.PutUint32(b[structuredSize+8:], uint32(n))
	return w.write(b[:])
}

// data sends one data chunk. ok is false if the export failed and the client
// has received the error.
func (w *worker) data(r request, flags uint16, off, n int64) (ok bool, err error) {
	buf := w.room(int(n))
	if err := w.readExport(buf[headRoom:], uint64(off)); err != nil {
		return false, w.fail(r, EIO)
	}
	head := headRoom - structuredSize - 8
	ch := chunk{flags: flags, kind: chunkData, cookie: r.cookie, length: uint32(n) + 8}
	ch.put(buf[head:])
	be.PutUint64(buf[headRoom-8:], uint64(off))
	err = w.write(buf[head:])
	return err == nil, err
}

// extents returns the export's extents of a range, without gaps and overlaps.
func (w *worker) extents(off, length int64) ([]Extent, error) {
	x, ok := w.export.(Extenter)
	if !ok || !w.profile.BlockStatus {
		w.all[0] = Extent{Extent: disk.Extent{Offset: off, Length: length}}
		return w.all[:], nil
	}
	said, err := x.Extents(off, length)
	if err != nil {
		return nil, err
	}
	return coverRange(said, off, length), nil
}

// coverRange cuts extents to a range and fills the gaps between them as data.
func coverRange(said []Extent, off, length int64) []Extent {
	end := off + length
	all := make([]Extent, 0, len(said)+1)
	add := func(to int64, hole, zero bool) {
		if to = min(to, end); to > off {
			e := Extent{Hole: hole, Zero: zero}
			e.Offset, e.Length = off, to-off
			all = appendExtent(all, e)
			off = to
		}
	}
	for _, e := range said {
		add(e.Offset, false, false)
		add(e.End(), e.Hole, e.Zero)
	}
	add(end, false, false)
	return all
}

// maxDescriptors bounds one block status answer; the client requests the rest.
const maxDescriptors = 64 << 10

func (w *worker) blockStatus(r request) error {
	extents, err := w.extents(int64(r.offset), int64(r.length))
	if err != nil {
		return w.fail(r, EIO)
	}
	n := min(len(extents), maxDescriptors)
	if r.flags&cmdFlagReqOne != 0 {
		n = 1
	}
	b := make([]byte, structuredSize, structuredSize+4+8*n)
	ch := chunk{flags: chunkDone, kind: chunkBlockStatus, cookie: r.cookie, length: uint32(4 + 8*n)}
	ch.put(b)
	b = be.AppendUint32(b, allocationID)
	for _, e := range extents[:n] {
		state := uint32(0)
		if e.Hole {
			state |= stateHole
		}
		if e.Zero {
			state |= stateZero
		}
		b = be.AppendUint32(b, uint32(e.Length))
		b = be.AppendUint32(b, state)
	}
	return w.write(b)
}
