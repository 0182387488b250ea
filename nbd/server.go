package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Export is the disk that a connection serves. If it is also an io.Closer, it
// is closed once, when the connection that opened it ends, for whatever reason.
// It must be safe for concurrent use.
type Export interface {
	// ReadAt is called only with ranges within Size, and either fills p or
	// fails.
	ReadAt(p []byte, off int64) (int, error)
	Size() int64
}

// Extenter is an Export that can report its allocation.
type Extenter interface {
	// Extents describes [off, off+length), in order. Gaps between the extents
	// count as data. It may describe less than the requested range, and more.
	Extents(off, length int64) ([]Extent, error)
}

// Listed is one line of a list of exports.
type Listed struct{ Name, Description string }

// Profile defines the features of a connection. The zero value supports only
// EXPORT_NAME and simple replies, without TLS.
type Profile struct {
	// Drop closes the connection before the greeting.
	Drop bool
	// TLS, if set, offers STARTTLS; ForceTLS refuses everything else before it.
	TLS      *tls.Config
	ForceTLS bool
	// NoZeroes, GO, Info, List, Structured and BlockStatus enable the features
	// of these names. BlockStatus needs Structured.
	NoZeroes, GO, Info, List, Structured, BlockStatus bool
	// MultiConn promises that several connections see the same bytes.
	MultiConn bool
	// LikeXAPI serves requests as xapi-nbd does (lib/server.ml of
	// xapi-project/nbd): strictly in order, reads in pieces of 512 KiB, only
	// multiples of 512, and the session ends at each error. A refused export
	// closes the connection.
	LikeXAPI bool
}

// Modern returns the profile with all features of this package, without TLS.
func Modern() Profile {
	return Profile{
		NoZeroes: true, GO: true, Info: true, List: true,
		Structured: true, BlockStatus: true, MultiConn: true,
	}
}

// XAPI returns the profile of xapi-nbd: with conf, that of a pool whose network
// has the purpose nbd, which requires TLS; without, that of one with
// insecure_nbd. GO and Structured, which only newer releases may support, are
// off.
func XAPI(conf *tls.Config) Profile {
	p := Profile{LikeXAPI: true}
	if conf != nil {
		p.TLS = conf.Clone()
		p.TLS.MaxVersion = tls.VersionTLS12
		p.ForceTLS = true
	}
	return p
}

// Server serves exports, read-only. Open must be set.
type Server struct {
	// Open opens an export for one connection. If its error is fs.ErrNotExist,
	// the client receives a specific error where the protocol has one.
	Open func(ctx context.Context, name string) (Export, error)
	// List answers a client's LIST; if nil, LIST is forbidden.
	List func(ctx context.Context) ([]Listed, error)
	// Profile chooses a connection's features; nil means Modern.
	Profile func(ctx context.Context, conn net.Conn) Profile
	// MaxConnections is the maximum number of concurrent connections, 0 for no
	// limit. Further ones are accepted and closed, as by xapi-nbd.
	MaxConnections int
	// Ended, if set, is called at the end of each connection; err is nil if the
	// client disconnected properly.
	Ended func(remote net.Addr, err error)

	mu     sync.Mutex
	active int
}

// handshakeLimit bounds the time up to the transmission phase, so that idle
// clients do not use up the connections.
const handshakeLimit = time.Minute

// Serve accepts connections from l until ctx ends or accepting fails. It closes
// l, ends the remaining connections, waits for them, and returns the reason:
// ctx.Err() if ctx has ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			l.Close()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accept: %w", err)
		}
		all.Go(func() {
			err := s.ServeConn(ctx, conn)
			if s.Ended != nil {
				s.Ended(conn.RemoteAddr(), err)
			}
		})
	}
}

// ServeConn serves one connection and closes it. The connection counts towards
// MaxConnections.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	s.mu.Lock()
	s.active++
	full := s.MaxConnections > 0 && s.active > s.MaxConnections
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.active--
		s.mu.Unlock()
	}()
	if full {
		return ErrBusy
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	p := Modern()
	if s.Profile != nil {
		p = s.Profile(ctx, conn)
	}
	if p.Drop {
		return ErrBusy
	}
	ss := &session{server: s, profile: p, conn: conn}
	_ = conn.SetDeadline(time.Now().Add(handshakeLimit))
	err := ss.haggle(ctx)
	if ss.export != nil {
		if c, ok := ss.export.(io.Closer); ok {
			defer c.Close()
		}
	}
	if err == nil && ss.export != nil {
		_ = conn.SetDeadline(time.Time{})
		if p.LikeXAPI {
			err = ss.serveInOrder()
		} else {
			err = ss.serve()
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if ss.conn != conn && err == nil {
		_ = ss.conn.Close() // sends close_notify with TLS
	}
	return err
}

// Active returns the number of connections, including those that are being
// refused.
func (s *Server) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active
}

// session is one connection of a server.
type session struct {
	server  *Server
	profile Profile
	conn    net.Conn // replaced by the TLS connection
	out     []byte

	noZeroes   bool
	structured bool
	allocation bool   // base:allocation was selected ...
	metaName   string // ... for this export
	export     Export
	name       string
}

// allocationID is the context ID that this server uses for base:allocation.
const allocationID = 1

// errLeft is returned if a client disconnects in the proper way.
var errLeft = errors.New("client left")
