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

// Options define the server to connect to, and how. Most servers need Address
// and ExportName; all other fields may stay zero.
type Options struct {
	Address string // host:port; for network "unix" a path
	Network string // default "tcp"
	// ExportName is treated as a secret: no error contains it.
	ExportName string
	// TLS, if set, requires TLS with this configuration.
	TLS *tls.Config
	// PinnedCertPEM, if set, requires TLS with a server that presents exactly
	// this certificate (any one of them, if the PEM holds several), regardless
	// of its issuer, names and dates. It is the field cert of VDI.get_nbd_info.
	// If TLS is set too, its other settings apply.
	PinnedCertPEM []byte
	// ServerName is sent to the server as the requested name (SNI).
	ServerName string
	// Basic avoids every feature that old servers may lack: it uses EXPORT_NAME
	// directly, and simple replies. Dial detects such servers by itself;
	// setting Basic for further connections to the same server saves one
	// attempt.
	Basic bool
	// Depth is the maximum number of concurrent requests on the connection, 16
	// if zero. Further requests wait.
	Depth int
	// Stall is how long the server may send nothing while an answer is pending,
	// also during the handshake; one minute if zero.
	Stall time.Duration
	// Drain is how long Close and a cancelled read wait for pending answers
	// while none of their bytes arrive, 5 s if zero. For a server that does
	// send, the limit is six times as long.
	Drain time.Duration
	// Dial replaces net.Dialer's DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Info holds the results of the handshake.
type Info struct {
	Size     int64 // of the export in bytes
	ReadOnly bool
	// MultiConn means that several connections see the same bytes, which is
	// always true for a read-only snapshot.
	MultiConn bool
	TLS       bool
	// Basic: the server supports only EXPORT_NAME and simple replies.
	Basic      bool
	Structured bool
	// Allocation: Conn.Extents works.
	Allocation bool
	// MinBlock, Preferred and MaxPayload are the server's block sizes, or 512,
	// 4096 and 32 MiB if it reported none. Requests are aligned to at least
	// 512.
	MinBlock, Preferred, MaxPayload int64

	contextID uint32
}

const (
	defaultDepth = 16
	maxDepth     = 1024
	defaultStall = time.Minute
	defaultDrain = 5 * time.Second
	// connectLimit is how long a host may take to accept a connection: another
	// host may be available.
	connectLimit = 15 * time.Second
)

// errGone is the cause if the server closed the connection after an option that
// it may merely not support.
var errGone = errors.New("hung up")

// Dial connects, negotiates and opens the export. It tries GO and structured
// replies first, and falls back to EXPORT_NAME with servers that answer UNSUP
// or close the connection. ctx bounds only the handshake.
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

// tlsConfig returns the configuration for STARTTLS, or nil for none.
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
	// The host's certificate is self-signed and contains a name that the host
	// may no longer have. Its identity with the certificate that the pool
	// returned over a trusted session is the proof; the handshake proves the
	// possession of the private key.
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
	// The sizes of the socket's buffers are not set: that would turn off the
	// kernel's own tuning, which on most systems exceeds the limit for a fixed
	// size.
	_ = nc.SetDeadline(time.Now().Add(stall))
	// Cancellation must end a handshake that waits for the server, but not
	// while the server answers: see Conn.Close.
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

// handshake is one negotiation. It reads exactly its own bytes: a byte read too
// many before TLS begins would be a byte without protection.
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

// greet reads the greeting and answers with the flags that it permits: a client
// must not set a flag that the server did not offer.
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

// reply reads one reply to option. data is valid until the next call.
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

// refusal converts an error reply to an error.
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

// permanent removes from err the mark that a more basic attempt may succeed.
func permanent(err error) error {
	if errors.Is(err, errGone) {
		return fmt.Errorf("hung up by the server: %w", ErrRefused)
	}
	return err
}

// structured requests structured replies, and with them the allocation context;
// the server may decline both.
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
			// A context that was selected before an error does not count.
			h.info.Allocation = false
			return h.declined(kind)
		}
	}
}

// declined accepts any error reply to an optional request.
func (h *handshake) declined(kind uint32) error {
	if kind&repIsError == 0 {
		return fmt.Errorf("%w: unexpected option reply %d", ErrProtocol, kind)
	}
	return nil
}

// goOption opens the export with GO. done is false if the server does not
// support it.
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

// exportName opens the export with the old option, to which a server can only
// refuse by closing the connection.
func (h *handshake) exportName(noZeroes bool) error {
	// The answer has no reply header: it consists of size, flags and, unless
	// both sides agreed otherwise, zeros.
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

// settle adjusts the block sizes to those that requests will use.
func (i *Info) settle() error {
	i.MinBlock = max(i.MinBlock, 512)
	i.Preferred = max(i.Preferred, i.MinBlock)
	i.MaxPayload = min(i.MaxPayload, maxPayload) / i.MinBlock * i.MinBlock
	if i.MaxPayload == 0 {
		return fmt.Errorf("%w: largest payload below the smallest block", ErrProtocol)
	}
	return nil
}
