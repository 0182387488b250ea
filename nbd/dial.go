package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"strings"
	"time"
)

// Options say what to connect to and how. Address and ExportName are needed
// for most servers, the rest may stay zero.
type Options struct {
	Address string // host:port; for network "unix" a path
	Network string // default "tcp"
	// ExportName is treated as a secret: no error shows it.
	ExportName string
	// TLS, if set, demands TLS with this configuration.
	TLS *tls.Config
	// PinnedCertPEM, if set, demands TLS with a server that shows exactly this
	// certificate (any one of them, if the PEM holds several), whoever signed
	// it and whatever its names and dates are. It is what VDI.get_nbd_info
	// calls cert. A TLS configuration given as well is used with it.
	PinnedCertPEM []byte
	// ServerName is sent to the server as the name wanted (SNI).
	ServerName string
	// Basic leaves out all that old servers may not know: EXPORT_NAME at
	// once, and simple replies. Dial finds out by itself; the second and
	// later connections to a server found to be so save a round of it.
	Basic bool
	// Depth is how many requests may be under way at once on the connection,
	// 16 if zero. Further ones wait.
	Depth int
	// Stall is how long the server may stay silent while it owes an answer,
	// in the handshake too; one minute if zero.
	Stall time.Duration
	// Drain is how long Close and a cancelled read wait for answers under way
	// while none of their bytes come, 5 s if zero. A server that does send is
	// waited for six times as long at most.
	Drain time.Duration
	// Dial replaces net.Dialer's DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Info is what the handshake told.
type Info struct {
	Size     int64 // of the export in bytes
	ReadOnly bool
	// MultiConn promises that several connections see the same bytes, which
	// for a read-only snapshot is so anyway.
	MultiConn bool
	TLS       bool
	// Basic: only EXPORT_NAME and simple replies were to be had.
	Basic      bool
	Structured bool
	// Allocation: Conn.Extents works.
	Allocation bool
	// MinBlock, Preferred and MaxPayload are the server's block sizes, or 512,
	// 4096 and 32 MiB if it named none. Requests are aligned to at least 512.
	MinBlock, Preferred, MaxPayload int64

	contextID uint32
}

const (
	defaultDepth = 16
	maxDepth     = 1024
	defaultStall = time.Minute
	defaultDrain = 5 * time.Second
	// connectLimit is how long a host may take to accept: there may be
	// another one to ask.
	connectLimit = 15 * time.Second
)

// errGone is the cause when the server hung up on an option that it may only
// not know.
var errGone = errors.New("hung up")

// Dial connects, negotiates and opens the export. It tries GO and structured
// replies first and goes back to EXPORT_NAME with servers that answer them
// with UNSUP, or by hanging up. ctx bounds the handshake only.
func Dial(ctx context.Context, o Options) (*Conn, error) {
	conf, err := o.tlsConfig()
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", o.Address, err)
	}
	c, err := dialOnce(ctx, &o, conf)
	if errors.Is(err, errGone) && ctx.Err() == nil {
		o.Basic = true
		c, err = dialOnce(ctx, &o, conf)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", o.Address, err)
	}
	return c, nil
}

// tlsConfig returns the configuration for STARTTLS, nil for none.
func (o *Options) tlsConfig() (*tls.Config, error) {
	if o.TLS == nil && len(o.PinnedCertPEM) == 0 {
		return nil, nil
	}
	conf := o.TLS.Clone() // nil stays nil
	if conf == nil {
		conf = &tls.Config{}
	}
	conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
	if o.ServerName != "" {
		conf.ServerName = o.ServerName
	}
	if len(o.PinnedCertPEM) == 0 {
		if conf.ServerName == "" && !conf.InsecureSkipVerify {
			host, _, err := net.SplitHostPort(o.Address)
			if err != nil {
				return nil, fmt.Errorf("%w: no server name to verify", ErrTLS)
			}
			conf.ServerName = host
		}
		return conf, nil
	}
	var pins [][]byte
	for rest := o.PinnedCertPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			pins = append(pins, block.Bytes)
		}
	}
	if len(pins) == 0 {
		return nil, fmt.Errorf("%w: no certificate in the pinned PEM", ErrTLS)
	}
	// The host's certificate signs itself and names whatever the host was
	// called once. Being the very one that the pool showed over a trusted
	// session is the proof; the handshake proves the private key.
	conf.InsecureSkipVerify = true
	also := conf.VerifyConnection
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 || !pinned(pins, s.PeerCertificates[0]) {
			return fmt.Errorf("%w: the server's certificate is not the pinned one", ErrTLS)
		}
		if also != nil {
			return also(s)
		}
		return nil
	}
	return conf, nil
}

func pinned(pins [][]byte, cert *x509.Certificate) bool {
	for _, p := range pins {
		if bytes.Equal(p, cert.Raw) {
			return true
		}
	}
	return false
}

func dialOnce(ctx context.Context, o *Options, conf *tls.Config) (*Conn, error) {
	network := o.Network
	if network == "" {
		network = "tcp"
	}
	stall := o.stall()
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: min(stall, connectLimit)}).DialContext
	}
	nc, err := dial(ctx, network, o.Address)
	if err != nil {
		return nil, err
	}
	// The socket's buffers are left as they are: setting their size would turn
	// off the kernel's own tuning, which goes further than the limit for a
	// fixed one on most systems.
	_ = nc.SetDeadline(time.Now().Add(stall))
	// Cancelling must end a handshake that waits for the server, but not while
	// the server answers: see Conn.Close.
	drain := o.drain()
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Now().Add(drain)) })
	h := &handshake{conn: nc, opts: o, tls: conf}
	err = h.run(context.WithoutCancel(ctx))
	if !stop() && err == nil {
		_ = newConn(h.conn, h.info, o).Close()
		return nil, ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return nil, fmt.Errorf("handshake: %w", ErrStalled)
		}
		return nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	return newConn(h.conn, h.info, o), nil
}

func (o *Options) drain() time.Duration {
	if o.Drain <= 0 {
		return defaultDrain
	}
	return o.Drain
}

func (o *Options) stall() time.Duration {
	if o.Stall <= 0 {
		return defaultStall
	}
	return o.Stall
}

// handshake is one negotiation. It reads exactly what belongs to it: a byte
// too many read before TLS begins would be a byte that was never protected.
type handshake struct {
	conn net.Conn // replaced by the TLS connection
	opts *Options
	tls  *tls.Config
	info Info
	out  []byte
	in   []byte
}

func (h *handshake) run(ctx context.Context) error {
	h.info = Info{MinBlock: 1, Preferred: 4096, MaxPayload: maxPayload}
	noZeroes, err := h.greet()
	if err != nil {
		return err
	}
	if h.tls != nil {
		if err := h.startTLS(ctx); err != nil {
			return err
		}
	}
	if !h.opts.Basic {
		if err := h.structured(); err != nil {
			return err
		}
		done, err := h.goOption()
		if done || err != nil {
			return err
		}
	}
	return h.exportName(noZeroes)
}

// greet reads the greeting and answers with the flags it allows: a client
// must not claim a flag that the server did not offer.
func (h *handshake) greet() (noZeroes bool, err error) {
	b := make([]byte, greetingSize)
	if _, err := io.ReadFull(h.conn, b); err != nil {
		if hungUp(err) {
			return false, ErrBusy
		}
		return false, fmt.Errorf("greeting: %w", err)
	}
	if be.Uint64(b) != greetingMagic || be.Uint64(b[8:]) != optionMagic {
		return false, fmt.Errorf("%w: not the greeting of a newstyle server", ErrProtocol)
	}
	flags := be.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return false, fmt.Errorf("%w: server is not fixed newstyle", ErrProtocol)
	}
	answer := uint32(flags & (flagFixedNewstyle | flagNoZeroes))
	if err := h.write(be.AppendUint32(h.out[:0], answer)); err != nil {
		return false, err
	}
	return flags&flagNoZeroes != 0, nil
}

func (h *handshake) write(b []byte) error {
	h.out = b
	if _, err := h.conn.Write(b); err != nil {
		if hungUp(err) {
			return fmt.Errorf("%w by the server: %w", errGone, ErrRefused)
		}
		return err
	}
	return nil
}

func (h *handshake) send(option uint32, data []byte) error {
	return h.write(appendOption(h.out[:0], option, data))
}

// reply reads one reply to option. data is valid until the next one.
func (h *handshake) reply(option uint32) (kind uint32, data []byte, err error) {
	head := make([]byte, optionReplySize)
	if _, err = io.ReadFull(h.conn, head); err != nil {
		if hungUp(err) {
			err = fmt.Errorf("%w by the server: %w", errGone, ErrRefused)
		}
		return 0, nil, err
	}
	n := be.Uint32(head[16:])
	switch {
	case be.Uint64(head) != replyMagic:
		return 0, nil, fmt.Errorf("%w: option reply magic", ErrProtocol)
	case be.Uint32(head[8:]) != option:
		return 0, nil, fmt.Errorf("%w: reply to option %d, asked was %d", ErrProtocol, be.Uint32(head[8:]), option)
	case n > maxOptionData:
		return 0, nil, fmt.Errorf("%w: option reply of %d bytes", ErrProtocol, n)
	}
	if cap(h.in) < int(n) {
		h.in = make([]byte, n)
	}
	data = h.in[:n]
	if _, err = io.ReadFull(h.conn, data); err != nil {
		if hungUp(err) {
			err = fmt.Errorf("%w by the server: %w", errGone, ErrRefused)
		}
		return 0, nil, err
	}
	return be.Uint32(head[12:]), data, nil
}

// refusal turns an error reply into an error.
func (h *handshake) refusal(what string, kind uint32, data []byte) error {
	msg := string(data)
	if h.opts.ExportName != "" {
		msg = strings.ReplaceAll(msg, h.opts.ExportName, "(export name)")
	}
	class := ErrRefused
	name := fmt.Sprintf("error %#x", kind)
	switch kind {
	case repErrUnsup:
		name = "UNSUP"
	case repErrPolicy:
		name = "POLICY"
	case repErrInvalid:
		name = "INVALID"
	case repErrTLSRequired:
		name, class = "TLS_REQD", ErrTLS
	case repErrUnknown:
		name = "UNKNOWN"
	case repErrShutdown:
		name = "SHUTDOWN"
	case repErrBlockSizeReqd:
		name = "BLOCK_SIZE_REQD"
	case repErrTooBig:
		name = "TOO_BIG"
	}
	if msg != "" {
		return fmt.Errorf("%w: %s: server says %s: %.200q", class, what, name, msg)
	}
	return fmt.Errorf("%w: %s: server says %s", class, what, name)
}

func (h *handshake) startTLS(ctx context.Context) error {
	if err := h.send(optStartTLS, nil); err != nil {
		return permanent(err)
	}
	kind, data, err := h.reply(optStartTLS)
	if err != nil {
		return permanent(err)
	}
	if kind != repAck {
		return fmt.Errorf("%w: %w", ErrTLS, h.refusal("starttls", kind, data))
	}
	tc := tls.Client(h.conn, h.tls)
	if err := tc.HandshakeContext(ctx); err != nil {
		var ne net.Error
		if errors.Is(err, ErrTLS) || errors.As(err, &ne) && ne.Timeout() {
			return err
		}
		if hungUp(err) {
			return fmt.Errorf("tls handshake: %w: %v", ErrLost, err)
		}
		return fmt.Errorf("%w: %w", ErrTLS, err)
	}
	h.conn, h.info.TLS = tc, true
	return nil
}

// permanent takes from err the hint that a more basic try may help.
func permanent(err error) error {
	if errors.Is(err, errGone) {
		return fmt.Errorf("hung up by the server: %w", ErrRefused)
	}
	return err
}

// structured asks for structured replies, and with them for the allocation
// context; both may be declined.
func (h *handshake) structured() error {
	if err := h.send(optStructuredReply, nil); err != nil {
		return err
	}
	kind, data, err := h.reply(optStructuredReply)
	if err != nil {
		return err
	}
	if kind != repAck {
		if kind == repErrTLSRequired {
			return h.refusal("structured replies", kind, data)
		}
		return h.declined(kind)
	}
	h.info.Structured = true
	m := metaRequest{name: h.opts.ExportName, queries: []string{contextAllocation}}
	if err := h.send(optSetMetaContext, m.append(nil)); err != nil {
		return err
	}
	for n := 0; ; n++ {
		kind, data, err := h.reply(optSetMetaContext)
		if err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind == repMetaContext && n < 16:
			if len(data) >= 4 && string(data[4:]) == contextAllocation {
				h.info.Allocation, h.info.contextID = true, be.Uint32(data)
			}
		default:
			// What was selected before an error does not count.
			h.info.Allocation = false
			return h.declined(kind)
		}
	}
}

// declined accepts any error reply to something that was only a wish.
func (h *handshake) declined(kind uint32) error {
	if kind&repIsError == 0 {
		return fmt.Errorf("%w: unexpected option reply %d", ErrProtocol, kind)
	}
	return nil
}

// goOption opens the export with GO. done is false if the server does not
// know it.
func (h *handshake) goOption() (done bool, err error) {
	g := goRequest{name: h.opts.ExportName, infos: []uint16{infoBlockSize}}
	if err := h.send(optGo, g.append(nil)); err != nil {
		return false, err
	}
	known := false
	for n := 0; ; n++ {
		kind, data, err := h.reply(optGo)
		if err != nil {
			return false, err
		}
		switch {
		case kind == repAck:
			if !known {
				return false, fmt.Errorf("%w: go without the export's size", ErrProtocol)
			}
			return true, h.info.settle()
		case kind == repInfo && n < 64:
			if len(data) < 2 {
				return false, fmt.Errorf("%w: information reply", ErrProtocol)
			}
			switch be.Uint16(data) {
			case infoExport:
				if len(data) != 12 {
					return false, fmt.Errorf("%w: export information of %d bytes", ErrProtocol, len(data))
				}
				known = true
				err = h.info.export(be.Uint64(data[2:]), be.Uint16(data[10:]))
			case infoBlockSize:
				if len(data) != 14 {
					return false, fmt.Errorf("%w: block size information of %d bytes", ErrProtocol, len(data))
				}
				err = h.info.blockSize(be.Uint32(data[2:]), be.Uint32(data[6:]), be.Uint32(data[10:]))
			}
			if err != nil {
				return false, err
			}
		case kind == repErrUnsup:
			return false, nil
		case kind&repIsError != 0:
			return false, h.refusal("go", kind, data)
		default:
			return false, fmt.Errorf("%w: unexpected option reply %d", ErrProtocol, kind)
		}
	}
}

// exportName opens the export the old way, where hanging up is the only
// refusal.
func (h *handshake) exportName(noZeroes bool) error {
	// The answer has no reply header: size, flags and, unless both sides
	// agreed otherwise, zeros.
	if err := h.send(optExportName, []byte(h.opts.ExportName)); err != nil {
		return permanent(err)
	}
	b := make([]byte, 10+exportPadding)
	if noZeroes {
		b = b[:10]
	}
	if n, err := io.ReadFull(h.conn, b); err != nil {
		if hungUp(err) && n == 0 {
			return fmt.Errorf("hung up by the server: %w", ErrRefused)
		}
		if hungUp(err) {
			return fmt.Errorf("export information cut short: %w", ErrLost)
		}
		return err
	}
	h.info.Basic = !h.info.Structured
	if err := h.info.export(be.Uint64(b), be.Uint16(b[8:])); err != nil {
		return err
	}
	return h.info.settle()
}

func (i *Info) export(size uint64, flags uint16) error {
	if size > 1<<62 {
		return fmt.Errorf("%w: export of %d bytes", ErrProtocol, size)
	}
	i.Size = int64(size)
	i.ReadOnly = flags&txReadOnly != 0
	i.MultiConn = flags&txMultiConn != 0
	return nil
}

func (i *Info) blockSize(minimum, preferred, payload uint32) error {
	if bits.OnesCount32(minimum) != 1 || minimum > 64<<10 || bits.OnesCount32(preferred) != 1 ||
		preferred < minimum || payload < minimum {
		return fmt.Errorf("%w: block sizes %d, %d, %d", ErrProtocol, minimum, preferred, payload)
	}
	i.MinBlock, i.Preferred, i.MaxPayload = int64(minimum), int64(preferred), int64(payload)
	return nil
}

// settle brings the block sizes to what requests will use.
func (i *Info) settle() error {
	i.MinBlock = max(i.MinBlock, 512)
	i.Preferred = max(i.Preferred, i.MinBlock)
	i.MaxPayload = min(i.MaxPayload, maxPayload) / i.MinBlock * i.MinBlock
	if i.MaxPayload == 0 {
		return fmt.Errorf("%w: largest payload below the smallest block", ErrProtocol)
	}
	return nil
}
