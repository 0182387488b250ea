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

// Export is what a connection serves. If it is an io.Closer too, it is closed
// once, when the connection that opened it ends, however that comes about. It
// must bear concurrent calls.
type Export interface {
	// ReadAt is called within Size only, and fills p or fails.
	ReadAt(p []byte, off int64) (int, error)
	Size() int64
}

// Extenter is an Export that knows what it holds.
type Extenter interface {
	// Extents describes [off, off+length), in order. What lies between the
	// extents counts as data. It may describe less than was asked, and more.
	Extents(off, length int64) ([]Extent, error)
}

// Listed is one line of a list of exports.
type Listed struct{ Name, Description string }

// Profile is how a connection behaves. Its zero value knows nothing but
// EXPORT_NAME and simple replies, without TLS.
type Profile struct {
	// Drop closes the connection before the greeting.
	Drop bool
	// TLS, if set, offers STARTTLS; ForceTLS allows nothing without it.
	TLS      *tls.Config
	ForceTLS bool
	// NoZeroes, GO, Info, List, Structured and BlockStatus switch on what they
	// are named for. BlockStatus needs Structured.
	NoZeroes, GO, Info, List, Structured, BlockStatus bool
	// MultiConn promises that several connections see the same.
	MultiConn bool
	// LikeXAPI serves requests as xapi-nbd does (lib/server.ml of
	// xapi-project/nbd): strictly in order, reads in pieces of 512 KiB,
	// nothing but multiples of 512, and the session ends at each error. A
	// refused export is a closed connection.
	LikeXAPI bool
}

// Modern is the profile with all that this package knows, without TLS.
func Modern() Profile {
	return Profile{
		NoZeroes: true, GO: true, Info: true, List: true,
		Structured: true, BlockStatus: true, MultiConn: true,
	}
}

// XAPI is the profile of xapi-nbd: with conf, a pool whose network has the
// purpose nbd, which demands TLS; without, one with insecure_nbd. GO and
// Structured, which only newer releases may know, are off.
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
	// Open opens an export for one connection. An error that is
	// fs.ErrNotExist is told apart from others where the protocol allows it.
	Open func(ctx context.Context, name string) (Export, error)
	// List answers a client's LIST; nil forbids it.
	List func(ctx context.Context) ([]Listed, error)
	// Profile chooses a connection's behaviour; nil is Modern.
	Profile func(ctx context.Context, conn net.Conn) Profile
	// MaxConnections is how many are served at once, 0 for any number. More
	// are accepted and closed, as by xapi-nbd.
	MaxConnections int
	// Ended, if set, is told of each connection's end; err is nil if the
	// client took its leave properly.
	Ended func(remote net.Addr, err error)

	mu     sync.Mutex
	active int
}

// handshakeLimit bounds a connection's life up to the transmission phase, so
// that idle clients do not use up the connections.
const handshakeLimit = time.Minute

// Serve accepts connections from l until ctx ends or accepting fails. It
// closes l, ends the connections that are left, waits for them, and returns
// the reason: ctx.Err() if that was it.
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

// ServeConn serves one connection and closes it. It counts for
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
		_ = ss.conn.Close() // says good-bye within TLS
	}
	return err
}

// Active is how many connections there are, those being turned away included.
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

// allocationID is our number for base:allocation.
const allocationID = 1

// errLeft is a client's orderly departure.
var errLeft = errors.New("client left")
