package nbd

import (
	"bufio"
	"fmt"
	"io"
	"slices"
)

// span is a range of a read's buffer.
type span struct{ from, to int64 }

// maxSpans bounds the number of separate pieces in which one answer may arrive.
// Servers send them in order, or nearly so; a peer that tries to exhaust the
// memory does not.
const maxSpans = 1024

// addSpan marks [from, to) as arrived. It fails if any part of it has arrived
// before.
func addSpan(got []span, from, to int64) ([]span, error) {
	if k := len(got) - 1; k >= 0 && got[k].to == from {
		got[k].to = to
		return got, nil
	}
	i, _ := slices.BinarySearchFunc(got, from, func(s span, v int64) int {
		if s.from < v {
			return -1
		}
		return 1
	})
	if i > 0 && got[i-1].to > from || i < len(got) && got[i].from < to {
		return got, fmt.Errorf("%w: bytes sent twice", errMalformed)
	}
	after := i < len(got) && got[i].from == to
	switch {
	case i > 0 && got[i-1].to == from && after:
		got[i-1].to = got[i].to
		return slices.Delete(got, i, i+1), nil
	case i > 0 && got[i-1].to == from:
		got[i-1].to = to
		return got, nil
	case after:
		got[i].from = from
		return got, nil
	}
	if len(got) >= maxSpans {
		return got, fmt.Errorf("%w: an answer in too many pieces", errMalformed)
	}
	return slices.Insert(got, i, span{from, to}), nil
}

// receiver reads all answers of a connection, on a goroutine of its own.
type receiver struct {
	c    *Conn
	in   *bufio.Reader
	head [structuredSize]byte
	tail [12]byte
}

func (r *receiver) run() {
	c := r.c
	defer close(c.ended)
	var err error
	for err == nil {
		err = r.answer()
	}
	if !isProtocol(err) {
		err = lost("receive answer", err)
	}
	c.fail(err)
	// fail skipped this call because it was active; it has ended now.
	c.mu.Lock()
	for i := range c.calls {
		k := &c.calls[i]
		if k.state == callWaiting && k.active {
			k.active = false
			c.finish(k, c.err)
		}
	}
	c.mu.Unlock()
}

// answer reads one simple reply or one chunk.
func (r *receiver) answer() error {
	if _, err := io.ReadFull(r.in, r.head[:simpleSize]); err != nil {
		return err
	}
	switch be.Uint32(r.head[:]) {
	case simpleMagic:
		return r.simple(Errno(be.Uint32(r.head[4:])), be.Uint64(r.head[8:]))
	case structuredMagic:
		if !r.c.info.Structured {
			return fmt.Errorf("%w: structured reply, never agreed on", ErrProtocol)
		}
		if _, err := io.ReadFull(r.in, r.head[simpleSize:]); err != nil {
			return err
		}
		ch, err := parseChunk(r.head[:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		return r.chunk(ch)
	}
	return fmt.Errorf("%w: answer begins with %#08x", ErrProtocol, be.Uint32(r.head[:]))
}

// find returns the call in flight that belongs to cookie.
func (r *receiver) find(cookie uint64) (*call, error) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	index := cookie & 0xffffffff
	if index < uint64(len(c.calls)) {
		if k := &c.calls[index]; k.state != callIdle && k.cookie() == cookie {
			return k, nil
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	return nil, fmt.Errorf("%w: answer to a request never made", ErrProtocol)
}

// fill reads n bytes of payload into the call's buffer at offset at, or
// discards them if the call was abandoned.
func (r *receiver) fill(k *call, at, n int64) error {
	c := r.c
	c.mu.Lock()
	var p []byte
	if k.state == callWaiting && c.err == nil {
		p, k.active = k.p, true
	}
	c.mu.Unlock()
	if p == nil {
		_, err := r.in.Discard(int(n))
		return err
	}
	if _, err := io.ReadFull(r.in, p[at:at+n]); err != nil {
		return err // still active: run finishes the call
	}
	c.mu.Lock()
	k.active = false
	c.mu.Unlock()
	return nil
}

// finish completes the call and wakes its caller.
func (r *receiver) finish(k *call, err error) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.state != callIdle {
		k.active = false
		c.finish(k, err)
	}
}

func commandName(command uint16) string {
	if command == cmdBlockStatus {
		return "block status"
	}
	return "read"
}

func (r *receiver) simple(errno Errno, cookie uint64) error {
	k, err := r.find(cookie)
	if err != nil {
		return err
	}
	if errno != 0 {
		r.finish(k, remote(k, errno, ""))
		return nil
	}
	// An error may be sent as a simple reply. Data may not after an agreement
	// on structured replies: their length would be a guess.
	if r.c.info.Structured {
		return fmt.Errorf("%w: simple reply to %s", ErrProtocol, commandName(k.command))
	}
	if err := r.fill(k, 0, k.length); err != nil {
		return err
	}
	r.finish(k, nil)
	return nil
}

func remote(k *call, errno Errno, message string) error {
	return &RemoteError{Command: commandName(k.command), Errno: errno, Message: message}
}

// chunk reads one chunk of a structured reply.
func (r *receiver) chunk(ch chunk) error {
	k, err := r.find(ch.cookie)
	if err != nil {
		return err
	}
	switch {
	case ch.kind == chunkNone:
		if ch.length != 0 || ch.flags&chunkDone == 0 {
			return fmt.Errorf("%w: empty chunk that is not one", ErrProtocol)
		}
	case ch.kind == chunkData && k.command == cmdRead:
		err = r.data(k, int64(ch.length))
	case ch.kind == chunkHole && k.command == cmdRead:
		err = r.hole(k, ch.length)
	case ch.kind == chunkBlockStatus && k.command == cmdBlockStatus:
		err = r.status(k, ch.length)
	case ch.kind&chunkIsError != 0:
		err = r.failure(k, ch)
	default:
		err = fmt.Errorf("%w: chunk of type %d in answer to %s", errMalformed, ch.kind, commandName(k.command))
	}
	if err != nil {
		return malformed(err)
	}
	if ch.flags&chunkDone == 0 {
		return nil
	}
	switch {
	case k.failure != nil:
		r.finish(k, k.failure)
	case k.command == cmdRead && (len(k.got) != 1 || k.got[0] != span{0, k.length}):
		return fmt.Errorf("%w: answer does not cover the read", ErrProtocol)
	case k.command == cmdBlockStatus && !k.told:
		return fmt.Errorf("%w: block status without a status", ErrProtocol)
	default:
		r.finish(k, nil)
	}
	return nil
}

// place checks that n bytes at the export's offset off belong to k's read, and
// marks them as arrived.
func (r *receiver) place(k *call, off uint64, n int64) (int64, error) {
	at := int64(off) - k.off
	if off > 1<<62 || at < 0 || n > k.length || at > k.length-n {
		return 0, fmt.Errorf("%w: %d bytes at %d were not asked for", errMalformed, n, off)
	}
	var err error
	k.got, err = addSpan(k.got, at, at+n)
	return at, err
}

func (r *receiver) data(k *call, length int64) error {
	n := length - 8
	if n <= 0 {
		return fmt.Errorf("%w: data chunk of %d bytes", errMalformed, length)
	}
	if _, err := io.ReadFull(r.in, r.tail[:8]); err != nil {
		return err
	}
	at, err := r.place(k, be.Uint64(r.tail[:]), n)
	if err != nil {
		return err
	}
	return r.fill(k, at, n)
}

func (r *receiver) hole(k *call, length uint32) error {
	if length != 12 {
		return fmt.Errorf("%w: hole chunk of %d bytes", errMalformed, length)
	}
	if _, err := io.ReadFull(r.in, r.tail[:]); err != nil {
		return err
	}
	n := int64(be.Uint32(r.tail[8:]))
	if n == 0 {
		return fmt.Errorf("%w: empty hole", errMalformed)
	}
	at, err := r.place(k, be.Uint64(r.tail[:]), n)
	if err != nil {
		return err
	}
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.state == callWaiting && c.err == nil {
		clear(k.p[at : at+n])
	}
	return nil
}

func (r *receiver) status(k *call, length uint32) error {
	if length < 4+8 || length > maxStatusPayload {
		return fmt.Errorf("%w: block status chunk of %d bytes", errMalformed, length)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(r.in, b); err != nil {
		return err
	}
	if be.Uint32(b) != r.c.info.contextID || k.told {
		return fmt.Errorf("%w: block status of another context", errMalformed)
	}
	ext, err := parseStatus(nil, b[4:], k.off, k.off+k.length)
	if err != nil {
		return err
	}
	k.told, k.extents = true, ext
	return nil
}

func (r *receiver) failure(k *call, ch chunk) error {
	if ch.length > maxOptionData {
		return fmt.Errorf("%w: error chunk of %d bytes", errMalformed, ch.length)
	}
	b := make([]byte, ch.length)
	if _, err := io.ReadFull(r.in, b); err != nil {
		return err
	}
	errno, msg, err := parseErrorChunk(ch.kind, b)
	if err != nil {
		return err
	}
	if k.failure == nil {
		k.failure = remote(k, errno, msg)
	}
	return nil
}
