package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// wire is one side of a connection, with manual control over its messages.
type wire struct {
	net.Conn
	t testing.TB
}

func (w *wire) put(parts ...any) {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case uint8:
			b = append(b, v)
		case uint16:
			b = be.AppendUint16(b, v)
		case uint32:
			b = be.AppendUint32(b, v)
		case uint64:
			b = be.AppendUint64(b, v)
		case []byte:
			b = append(b, v...)
		case string:
			b = append(b, v...)
		default:
			panic("nbd: no such part")
		}
	}
	_, _ = w.Write(b)
}

func (w *wire) take(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(w, b); err != nil {
		return nil
	}
	return b
}

// option reads one option.
func (w *wire) option() (uint32, []byte) {
	h := w.take(optionHeaderSize)
	if h == nil {
		return 0, nil
	}
	return be.Uint32(h[8:]), w.take(int(be.Uint32(h[12:])))
}

func (w *wire) reply(option, kind uint32, data []byte) {
	w.put(appendOptionReply(nil, option, kind, data))
}

func (w *wire) request() request {
	b := w.take(requestSize)
	if b == nil {
		return request{}
	}
	r, _ := parseRequest(b)
	return r
}

// newScript serves each connection with f, and then keeps it open until the
// client closes it, unless f has closed it.
func newScript(t testing.TB, f func(w *wire)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(&wire{c, t})
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().String()
}

func greeting(w *wire) {
	w.put(uint64(greetingMagic), uint64(optionMagic), uint16(flagFixedNewstyle))
	w.take(4)
}

// opened performs a handshake, up to the point where the client reads.
func opened(w *wire, structured bool, size uint64) {
	greeting(w)
	for {
		o, _ := w.option()
		switch o {
		case optStructuredReply, optSetMetaContext:
			if !structured {
				w.reply(o, repErrUnsup, nil)
				continue
			}
			if o == optSetMetaContext {
				w.reply(o, repMetaContext, append([]byte{0, 0, 0, 9}, contextAllocation...))
			}
			w.reply(o, repAck, nil)
		case optGo:
			b := be.AppendUint64([]byte{0, infoExport}, size)
			w.reply(o, repInfo, be.AppendUint16(b, txHasFlags|txReadOnly))
			w.reply(o, repAck, nil)
			return
		default:
			return
		}
	}
}

func TestOddHandshakes(t *testing.T) {
	export := be.AppendUint16(be.AppendUint64([]byte{0, infoExport}, 4096), 3)
	info := func(data ...[]byte) func(w *wire) {
		return func(w *wire) {
			greeting(w)
			w.option()
			w.reply(optStructuredReply, repErrUnsup, nil)
			w.option()
			for _, d := range data {
				w.reply(optGo, repInfo, d)
			}
			w.reply(optGo, repAck, nil)
		}
	}
	for name, tc := range map[string]struct {
		f    func(w *wire)
		want error
	}{
		"closed at once":   {func(w *wire) { w.Close() }, ErrBusy},
		"half a greeting":  {func(w *wire) { w.put("NBDMAGICIHA"); w.Close() }, ErrBusy},
		"another protocol": {func(w *wire) { w.put("HTTP/1.1 400 Bad Request\r\n\r\n") }, ErrProtocol},
		"oldstyle": {func(w *wire) {
			w.put("NBDMAGIC", uint64(0x00420281861253), make([]byte, 200))
		}, ErrProtocol},
		"not fixed":                 {func(w *wire) { w.put("NBDMAGICIHAVEOPT", uint16(0)) }, ErrProtocol},
		"closed after the greeting": {func(w *wire) { greeting(w); w.Close() }, ErrRefused},
		"wrong reply magic": {func(w *wire) {
			greeting(w)
			w.option()
			w.put(uint64(1), make([]byte, 12))
		}, ErrProtocol},
		"reply to another option": {func(w *wire) { greeting(w); w.option(); w.reply(optList, repAck, nil) }, ErrProtocol},
		"huge reply": {func(w *wire) {
			greeting(w)
			w.option()
			w.put(uint64(replyMagic), uint32(optStructuredReply), uint32(repAck), uint32(1<<31))
		}, ErrProtocol},
		"reply cut short": {func(w *wire) {
			greeting(w)
			w.option()
			w.put(uint64(replyMagic), uint32(optStructuredReply), uint32(repAck), uint32(9), "abc")
			w.Close()
		}, ErrLost}, // the second, basic attempt finds an export that is cut short
		"unexpected reply": {func(w *wire) { greeting(w); w.option(); w.reply(optStructuredReply, repServer, nil) }, ErrProtocol},
		"endless contexts": {func(w *wire) {
			greeting(w)
			w.option()
			w.reply(optStructuredReply, repAck, nil)
			w.option()
			for range 100 {
				w.reply(optSetMetaContext, repMetaContext, []byte("1234x:y"))
			}
		}, ErrProtocol},
		"go without a size":   {info(), ErrProtocol},
		"empty information":   {info(nil), ErrProtocol},
		"short export":        {info(export[:11]), ErrProtocol},
		"negative size":       {info(be.AppendUint16(be.AppendUint64([]byte{0, 0}, 1<<63), 3)), ErrProtocol},
		"odd block size":      {info(export, be.AppendUint32(be.AppendUint32(be.AppendUint32([]byte{0, 3}, 3), 4096), 1<<20)), ErrProtocol},
		"zero block size":     {info(export, make([]byte, 14)), ErrProtocol},
		"block size too big":  {info(export, be.AppendUint32(be.AppendUint32(be.AppendUint32([]byte{0, 3}, 1<<17), 1<<17), 1<<20)), ErrProtocol},
		"payload below block": {info(export, be.AppendUint32(be.AppendUint32(be.AppendUint32([]byte{0, 3}, 1), 512), 256)), ErrProtocol},
		"export name cut short": {func(w *wire) {
			greeting(w)
			for {
				o, _ := w.option()
				if o == optExportName || o == 0 {
					w.put(uint64(4096), uint16(3), make([]byte, 100))
					w.Close()
					return
				}
				w.reply(o, repErrUnsup, nil)
			}
		}, ErrLost},
		"go answered with a refusal that tells": {func(w *wire) {
			greeting(w)
			w.option()
			w.reply(optStructuredReply, repErrUnsup, nil)
			w.option()
			w.reply(optGo, repErrUnknown, []byte("no export "+testName+" here"))
		}, ErrRefused},
	} {
		c, err := Dial(testContext(t), Options{Address: newScript(t, tc.f), ExportName: testName, Stall: 5 * time.Second})
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		} else if bytes.Contains([]byte(err.Error()), []byte(testName)) {
			t.Errorf("%s: error shows the export's name: %v", name, err)
		}
	}
}

// TestServersThatHangUpOnTheUnknown covers old servers: any option except
// EXPORT_NAME ends the connection.
func TestServersThatHangUpOnTheUnknown(t *testing.T) {
	data := newExport(8192).data
	for _, fatal := range []uint32{optStructuredReply, optGo} {
		addr := newScript(t, func(w *wire) {
			greeting(w)
			for {
				switch o, _ := w.option(); o {
				case fatal:
					w.Close()
					return
				case optExportName:
					w.put(uint64(len(data)), uint16(3), make([]byte, exportPadding))
					for r := w.request(); r.command == cmdRead && r.length > 0; r = w.request() {
						w.put(uint32(simpleMagic), uint32(0), r.cookie, data[r.offset:r.offset+uint64(r.length)])
					}
					return
				default:
					w.reply(o, repErrUnsup, nil)
				}
			}
		})
		c := mustDial(t, Options{Address: addr})
		if !c.Info().Basic {
			t.Error("not known as basic")
		}
		readAll(t, c, data, 4096, 2)
	}
}

func TestOddAnswers(t *testing.T) {
	ch := func(flags, kind uint16, cookie uint64, length uint32) []byte {
		b := make([]byte, structuredSize)
		c := chunk{flags, kind, cookie, length}
		c.put(b)
		return b
	}
	data := bytes.Repeat([]byte{7}, 4096)
	for name, tc := range map[string]struct {
		structured bool
		f          func(w *wire, r request)
		want       error // nil: the read must succeed
	}{
		"closed":          {false, func(w *wire, r request) { w.Close() }, ErrLost},
		"half a header":   {false, func(w *wire, r request) { w.put(uint32(simpleMagic), uint16(0)); w.Close() }, ErrLost},
		"half the data":   {false, func(w *wire, r request) { w.put(uint32(simpleMagic), uint32(0), r.cookie, data[:999]); w.Close() }, ErrLost},
		"no magic":        {false, func(w *wire, r request) { w.put(uint32(1), uint32(0), r.cookie, data) }, ErrProtocol},
		"silence":         {false, func(w *wire, r request) {}, ErrStalled},
		"another cookie":  {false, func(w *wire, r request) { w.put(uint32(simpleMagic), uint32(0), r.cookie+1, data) }, ErrProtocol},
		"an earlier use":  {false, func(w *wire, r request) { w.put(uint32(simpleMagic), uint32(0), r.cookie-1<<32, data) }, ErrProtocol},
		"huge cookie":     {false, func(w *wire, r request) { w.put(uint32(simpleMagic), uint32(0), ^uint64(0), data) }, ErrProtocol},
		"an error":        {false, func(w *wire, r request) { w.put(uint32(simpleMagic), uint32(EIO), r.cookie) }, EIO},
		"structured, new": {false, func(w *wire, r request) { w.put(ch(1, chunkNone, r.cookie, 0)) }, ErrProtocol},
		"simple data":     {true, func(w *wire, r request) { w.put(uint32(simpleMagic), uint32(0), r.cookie, data) }, ErrProtocol},
		"simple error":    {true, func(w *wire, r request) { w.put(uint32(simpleMagic), uint32(EIO), r.cookie) }, EIO},
		"nothing read":    {true, func(w *wire, r request) { w.put(ch(1, chunkNone, r.cookie, 0)) }, ErrProtocol},
		"none with data":  {true, func(w *wire, r request) { w.put(ch(1, chunkNone, r.cookie, 8), uint64(0)) }, ErrProtocol},
		"none, not done":  {true, func(w *wire, r request) { w.put(ch(0, chunkNone, r.cookie, 0)) }, ErrProtocol},
		"empty data":      {true, func(w *wire, r request) { w.put(ch(1, chunkData, r.cookie, 8), r.offset) }, ErrProtocol},
		"tiny data":       {true, func(w *wire, r request) { w.put(ch(1, chunkData, r.cookie, 3), "abc") }, ErrProtocol},
		"too much data":   {true, func(w *wire, r request) { w.put(ch(1, chunkData, r.cookie, 8+4097), r.offset, data, uint8(0)) }, ErrProtocol},
		"endless data":    {true, func(w *wire, r request) { w.put(ch(1, chunkData, r.cookie, 1<<32-1), r.offset, data) }, ErrProtocol},
		"data before":     {true, func(w *wire, r request) { w.put(ch(1, chunkData, r.cookie, 8+4096), r.offset-1, data) }, ErrProtocol},
		"data far away":   {true, func(w *wire, r request) { w.put(ch(1, chunkData, r.cookie, 8+4096), ^uint64(0), data) }, ErrProtocol},
		"data twice": {true, func(w *wire, r request) {
			w.put(ch(0, chunkData, r.cookie, 8+4096), r.offset, data, ch(1, chunkData, r.cookie, 8+4096), r.offset, data)
		}, ErrProtocol},
		"data and hole": {true, func(w *wire, r request) {
			w.put(ch(0, chunkData, r.cookie, 8+4096), r.offset, data, ch(1, chunkHole, r.cookie, 12), r.offset+1, uint32(1))
		}, ErrProtocol},
		"half covered":  {true, func(w *wire, r request) { w.put(ch(1, chunkData, r.cookie, 8+2048), r.offset, data[:2048]) }, ErrProtocol},
		"hole too long": {true, func(w *wire, r request) { w.put(ch(1, chunkHole, r.cookie, 12), r.offset, uint32(4097)) }, ErrProtocol},
		"empty hole":    {true, func(w *wire, r request) { w.put(ch(1, chunkHole, r.cookie, 12), r.offset, uint32(0)) }, ErrProtocol},
		"short hole":    {true, func(w *wire, r request) { w.put(ch(1, chunkHole, r.cookie, 8), r.offset) }, ErrProtocol},
		"status of a read": {true, func(w *wire, r request) {
			w.put(ch(1, chunkBlockStatus, r.cookie, 12), uint32(9), uint32(4096), uint32(0))
		}, ErrProtocol},
		"unknown chunk":    {true, func(w *wire, r request) { w.put(ch(1, 77, r.cookie, 0)) }, ErrProtocol},
		"unknown error":    {true, func(w *wire, r request) { w.put(ch(1, chunkIsError|77, r.cookie, 6), uint32(EIO), uint16(0)) }, EIO},
		"error with words": {true, func(w *wire, r request) { w.put(ch(1, chunkError, r.cookie, 9), uint32(EIO), uint16(3), "bad") }, EIO},
		"error at a place": {true, func(w *wire, r request) {
			w.put(ch(1, chunkErrorOffset, r.cookie, 14), uint32(EIO), uint16(0), r.offset)
		}, EIO},
		"error, then data": {true, func(w *wire, r request) {
			w.put(ch(0, chunkErrorOffset, r.cookie, 14), uint32(EIO), uint16(0), r.offset, ch(1, chunkData, r.cookie, 8+4096), r.offset, data)
		}, EIO},
		"error zero":    {true, func(w *wire, r request) { w.put(ch(1, chunkError, r.cookie, 6), uint32(0), uint16(0)) }, ErrProtocol},
		"error lies":    {true, func(w *wire, r request) { w.put(ch(1, chunkError, r.cookie, 6), uint32(EIO), uint16(9)) }, ErrProtocol},
		"endless error": {true, func(w *wire, r request) { w.put(ch(1, chunkError, r.cookie, 1<<31), uint32(EIO), uint16(9)) }, ErrProtocol},
		"out of order": {true, func(w *wire, r request) {
			w.put(ch(0, chunkData, r.cookie, 8+1024), r.offset+3072, data[:1024],
				ch(0, chunkData, r.cookie, 8+1024), r.offset, data[:1024],
				ch(0, chunkData, r.cookie, 8+1024), r.offset+2048, data[:1024],
				ch(0, chunkData, r.cookie, 8+1024), r.offset+1024, data[:1024], ch(1, chunkNone, r.cookie, 0))
		}, nil},
	} {
		addr := newScript(t, func(w *wire) {
			opened(w, tc.structured, 1<<30)
			if r := w.request(); r.length > 0 {
				tc.f(w, r)
			}
		})
		stall := 20 * time.Second
		if tc.want == ErrStalled {
			stall = 40 * time.Millisecond
		}
		c := mustDial(t, Options{Address: addr, Stall: stall})
		p := make([]byte, 4096)
		_, err := c.ReadAt(testContext(t), p, 8192)
		switch {
		case tc.want == nil && (err != nil || !bytes.Equal(p, data)):
			t.Errorf("%s: %v", name, err)
		case tc.want != nil && !errors.Is(err, tc.want):
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		case errors.Is(err, io.EOF):
			t.Errorf("%s: reads as the end of the export: %v", name, err)
		}
		c.Close()
	}
}

func TestOddBlockStatus(t *testing.T) {
	send := func(id uint32, words ...uint32) func(w *wire, r request) {
		return func(w *wire, r request) {
			b := make([]byte, structuredSize)
			c := chunk{chunkDone, chunkBlockStatus, r.cookie, uint32(4 + 4*len(words))}
			c.put(b)
			b = be.AppendUint32(b, id)
			for _, v := range words {
				b = be.AppendUint32(b, v)
			}
			w.put(b)
		}
	}
	for name, f := range map[string]func(w *wire, r request){
		"another context": send(8, 4096, 0),
		"nothing":         send(9),
		"half":            send(9, 4096),
		"empty extent":    send(9, 0, 0),
		"behind the end":  send(9, 1<<20, 0, 512, 0),
		"huge": func(w *wire, r request) {
			b := make([]byte, structuredSize)
			c := chunk{chunkDone, chunkBlockStatus, r.cookie, 1 << 31}
			c.put(b)
			w.put(b)
		},
		"done without": func(w *wire, r request) {
			b := make([]byte, structuredSize)
			c := chunk{chunkDone, chunkNone, r.cookie, 0}
			c.put(b)
			w.put(b)
		},
	} {
		addr := newScript(t, func(w *wire) {
			opened(w, true, 1<<30)
			if r := w.request(); r.length > 0 {
				f(w, r)
			}
		})
		c := mustDial(t, Options{Address: addr})
		if _, err := c.Extents(testContext(t), 0, 4096); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
	// After a short answer the client requests the rest; a long one is cut.
	addr := newScript(t, func(w *wire) {
		opened(w, true, 8192)
		for r := w.request(); r.length > 0; r = w.request() {
			if r.offset == 0 {
				send(9, 512, stateHole|stateZero, 512, 4)(w, r)
			} else {
				send(9, 1<<30, stateZero)(w, r)
			}
		}
	})
	c := mustDial(t, Options{Address: addr})
	got, err := c.Extents(testContext(t), 100, 8000)
	if err != nil || len(got) != 3 || got[0].Offset != 100 || got[0].Length != 412 || !got[0].Hole || !got[0].Zero ||
		got[1].Length != 512 || got[1].Zero || got[2].End() != 8100 || !got[2].Zero || got[2].Hole {
		t.Errorf("extents %v, %v", got, err)
	}
}
