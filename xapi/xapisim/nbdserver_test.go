package xapisim

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"

	"xenkeep/nbd"
)

// Row X8 of the fault list: a fragile NBD server survives our client, even if
// the client closes, or is cancelled, while replies are in progress.
func TestOurClientLeavesNBDAlive(t *testing.T) {
	for name, cancelled := range map[string]bool{"closed": false, "cancelled": true} {
		t.Run(name, func(t *testing.T) {
			c := start(t, func(cfg *Config) { cfg.NBD, cfg.NBDFragile, cfg.Hosts = NBDTLS, true, 1 })
			disk := c.newDisk(c.sr("nfs"), 64*mib, map[string]any{})
			o := c.nbdInfo(disk)[0]
			d, err := nbd.Open(t.Context(), nbd.DiskOptions{Endpoints: []nbd.Endpoint{{
				Address: o.Address, ExportName: o.ExportName, PinnedCertPEM: o.PinnedCertPEM, ServerName: o.ServerName,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var reads sync.WaitGroup
			first := make(chan struct{})
			var once sync.Once
			for i := range 32 {
				reads.Go(func() {
					_, _ = d.ReadAt(ctx, make([]byte, 2*mib), int64(i)*2*mib)
					once.Do(func() { close(first) })
				})
			}
			<-first // the other reads are in progress, or are about to be
			if cancelled {
				cancel()
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			reads.Wait()
			eventually(t, "dom0 lets go", func() bool { return c.dom0VBDs() == 0 })
			if !c.p.NBDAlive(0) {
				t.Error("the host's NBD server is dead")
			}
			c.dialNBD(c.nbdInfo(disk)[0]).Close()
		})
	}
}

// watchedConn reports when more than a handshake has been received.
type watchedConn struct {
	net.Conn
	n    int
	some chan struct{}
}

func (w *watchedConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if before := w.n; before < 64<<10 && before+n >= 64<<10 {
		close(w.some)
	}
	w.n += n
	return n, err
}

// Row X8: the NBD server of a host dies if a client disconnects while replies
// are in progress. Its VBDs stay in dom0 until it runs again.
func TestFragileNBDServerDies(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.NBD, cfg.NBDFragile, cfg.Hosts = NBDPlain, true, 1 })
	disk := c.newDisk(c.sr("nfs"), 64*mib, map[string]any{})
	other := c.dialNBD(c.nbdInfo(disk)[0])
	// The server pauses within its answer until the client has disconnected,
	// and then continues with it.
	c.p.Fault(Fault{On: nbdFault, Cut: true, CutAt: mib, Stall: true})
	o := c.nbdInfo(disk)[0]
	socket := &watchedConn{some: make(chan struct{})}
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		var err error
		socket.Conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return socket, err
	}
	o.Basic = true
	conn := c.dialNBD(o)
	read := make(chan error, 1)
	go func() {
		_, err := conn.ReadAt(t.Context(), make([]byte, 2*mib), 0)
		read <- err
	}()
	<-socket.some
	_ = socket.Conn.(*net.TCPConn).SetLinger(0)
	socket.Conn.Close() // as the system does for a process that was killed
	eventually(t, "the server dies", func() bool { return !c.p.NBDAlive(0) })
	if err := <-read; err == nil {
		t.Error("the read succeeded")
	}
	if _, err := other.ReadAt(t.Context(), make([]byte, 512), 0); err == nil {
		t.Error("another client is still served")
	}
	if _, err := nbd.Dial(t.Context(), c.nbdInfo(disk)[0]); err == nil {
		t.Error("a new client is served")
	}
	if n := c.dom0VBDs(); n != 2 {
		t.Errorf("%d attachments are left, want 2", n)
	}
	eventually(t, "the connections have ended", func() bool {
		c.p.mu.Lock()
		defer c.p.mu.Unlock()
		return len(c.p.hosts[0].nbdLeft) == 2
	})
	c.p.RestartNBD(0)
	if n := c.dom0VBDs(); n != 0 {
		t.Errorf("%d attachments after the restart", n)
	}
	c.dialNBD(c.nbdInfo(disk)[0]).Close()
}

// Row F7 of the fault list: the kinds of NBD server, up to one that supports
// block status, serve the same bytes.
func TestNBDServers(t *testing.T) {
	for _, kind := range NBDServers {
		t.Run(string(kind), func(t *testing.T) {
			c := start(t, func(cfg *Config) { cfg.NBD, cfg.NBDServer = NBDTLS, kind })
			snap := c.snapshotDisk(0)
			conn := c.dialNBD(c.nbdInfo(snap)[0])
			info := conn.Info()
			if want := kind != NBDServerXAPI; info.Basic == want || info.Structured != want {
				t.Errorf("basic %v, structured %v", info.Basic, info.Structured)
			}
			if info.Allocation != (kind == NBDServerFull) {
				t.Errorf("block status %v", info.Allocation)
			}
			got := make([]byte, 8*mib)
			if _, err := conn.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, pattern(1, 8*mib)) {
				t.Errorf("data: %v", err)
			}
			if kind != NBDServerFull {
				return
			}
			sparse := c.newDisk(c.sr("nfs"), 16*mib, map[string]any{})
			v, err := c.p.Volume(c.uuid("VDI", sparse))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.WriteAt(pattern(3, mib), 5*mib); err != nil {
				t.Fatal(err)
			}
			conn = c.dialNBD(c.nbdInfo(sparse)[0])
			ext, err := conn.Extents(t.Context(), 0, 16*mib)
			if err != nil || len(ext) != 3 || !ext[0].Zero || ext[1].Zero || ext[1].Offset != 4*mib || ext[1].Length != 2*mib || !ext[2].Hole {
				t.Errorf("extents %v, %v", ext, err)
			}
			if _, err := conn.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got[5*mib:6*mib], pattern(3, mib)) || got[0] != 0 {
				t.Errorf("sparse data: %v", err)
			}
		})
	}
	if _, err := New(Config{NBDServer: "other"}); err == nil {
		t.Error("a kind that does not exist is accepted")
	}
}
