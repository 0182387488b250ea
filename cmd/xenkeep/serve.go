package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"xenkeep/job"
	"xenkeep/job/browse"
)

func newServeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve disks of snapshots over the network",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(newServeNBDCommand())
	return cmd
}

type serveNBDOptions struct {
	repository repositoryFlags
	writerFlag
	disk                string
	listen, socket      string
	cert, key, clientCA string
	insecure            bool
	cache               byteSize
	tlsWanted           bool
}

func newServeNBDCommand() *cobra.Command {
	o := serveNBDOptions{cache: 64 << 20}
	cmd := &cobra.Command{
		Use:   "nbd [SNAPSHOT]",
		Short: "Serve disks of snapshots as read-only NBD exports",
		Long: `Serve disks over NBD, read-only, until interrupted: to qemu-img, nbdcopy, nbdfuse, or
the kernel (nbd-client). The exports of one SNAPSHOT are called as its disks are
(xvda); where it has one disk the name may be left out. Without SNAPSHOT all can be
opened, as ID/DISK or latest:VM/DISK.

NBD has no passwords: anyone who can connect can read. So the default is a Unix socket
that only this user can use, and --listen needs TLS or --insecure, because every user
of a machine can connect to its ports. With --tls-client-ca, clients need a certificate.`,
		Example: `  xenkeep serve nbd latest:web
  xenkeep serve nbd latest:web --socket /tmp/web.sock
  qemu-img convert -O qcow2 "nbd+unix:///xvda?socket=/tmp/web.sock" web.qcow2
  xenkeep serve nbd --listen :10809 --tls-cert cert.pem --tls-key key.pem --tls-client-ca ca.pem`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return err
			}
			return o.check(len(args) > 0)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runServeNBD(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.writerFlag.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.disk, "disk", "", "serve this disk of SNAPSHOT alone: its `device`, VDI or name")
	s.StringVar(&o.listen, "listen", "", "listen on this TCP `address`, for example :10809; needs TLS or --insecure")
	s.StringVar(&o.socket, "socket", "", "listen on this Unix socket, a `file` that only this user can use (a file in the user's runtime folder)")
	s.StringVar(&o.cert, "tls-cert", "", "demand TLS: `file` of the server's certificate (PEM)")
	s.StringVar(&o.key, "tls-key", "", "`file` of its key (PEM)")
	s.StringVar(&o.clientCA, "tls-client-ca", "", "let in only clients with a certificate of this CA: a `file` (PEM)")
	s.BoolVar(&o.insecure, "insecure", false, "listen on TCP without TLS: every user of this machine, and everyone on the network, can read")
	s.Var(&o.cache, "cache", "keep at most this `size` in memory")
	return cmd
}

func (o *serveNBDOptions) check(snapshot bool) error {
	o.tlsWanted = o.cert != "" || o.key != "" || o.clientCA != ""
	switch {
	case o.socket != "" && o.listen != "":
		return usagef("--listen or --socket, not both")
	case o.disk != "" && !snapshot:
		return usagef("--disk requires a SNAPSHOT")
	case o.tlsWanted && (o.cert == "" || o.key == ""):
		return usagef("TLS needs both --tls-cert and --tls-key")
	case o.tlsWanted && o.insecure:
		return usagef("--insecure cannot be used with TLS")
	case o.insecure && o.listen == "":
		return usagef("--insecure goes with --listen")
	case o.listen == "":
		return nil
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return usagef("--listen: %w", err)
	}
	if o.tlsWanted || o.insecure {
		return nil
	}
	who := "from other machines"
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		who = "by every user of this machine"
	}
	return usagef("%s can be reached %s, and NBD has no passwords: give --tls-cert and --tls-key, or --insecure; or use a socket", o.listen, who)
}

// defaultSocket returns a socket in a folder that only this user can enter.
func (o *serveNBDOptions) defaultSocket() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = o.repository.cache()
	}
	dir = filepath.Join(dir, "xenkeep")
	return filepath.Join(dir, "nbd.sock"), os.MkdirAll(dir, 0o700)
}

// config is nil without TLS.
func (o *serveNBDOptions) config() (*tls.Config, error) {
	if !o.tlsWanted {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", o.cert, o.key, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if o.clientCA != "" {
		p, err := os.ReadFile(o.clientCA)
		if err != nil {
			return nil, err
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !c.ClientCAs.AppendCertsFromPEM(p) {
			return nil, fmt.Errorf("%s: no certificate in it", o.clientCA)
		}
	}
	return c, nil
}

// bind opens the address, or the socket, which must not be there, or be dead.
func (o *serveNBDOptions) bind(ctx context.Context) (l net.Listener, uri string, err error) {
	scheme := "nbd"
	if o.tlsWanted {
		scheme = "nbds"
	}
	if o.listen != "" {
		if l, err = new(net.ListenConfig).Listen(ctx, "tcp", o.listen); err != nil {
			return nil, "", err
		}
		return l, scheme + "://" + l.Addr().String(), nil
	}
	socket := o.socket
	if socket == "" {
		if socket, err = o.defaultSocket(); err != nil {
			return nil, "", err
		}
	}
	l, err = bindSocket(ctx, socket)
	return l, scheme + "+unix:///?socket=" + socket, err
}

func bindSocket(ctx context.Context, socket string) (net.Listener, error) {
	if st, err := os.Lstat(socket); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s: %w", socket, job.ErrExists)
		}
		if c, err := new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("%s: something listens on it: %w", socket, job.ErrExists)
		}
		if err := os.Remove(socket); err != nil {
			return nil, err
		}
	}
	// Nobody else may connect between the creation of the socket and a change of
	// its permissions.
	before := syscall.Umask(0o177)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	syscall.Umask(before)
	return l, err
}

func runServeNBD(cmd *cobra.Command, o *serveNBDOptions, args []string) error {
	ctx, stderr := cmd.Context(), cmd.ErrOrStderr()
	conf, err := o.config()
	if err != nil {
		return err
	}
	r, err := o.repository.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer r.Close()
	tellProblems(stderr, r.Problems())
	so := browse.NBDOptions{Disk: o.disk, TLS: conf, Cache: int64(o.cache), Log: func(text string) { printError(stderr, oneLine(text), "") }}
	if len(args) > 0 {
		if so.Snapshot, err = resolve(ctx, r, args[0], o.writer, stderr); err != nil {
			return err
		}
		if o.disk != "" {
			if _, err := so.Snapshot.Disk(o.disk); err != nil {
				return err
			}
		}
	}
	l, uri, err := o.bind(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "serving %s\n", printable(uri))
	err = browse.ServeNBD(ctx, r, l, so)
	if errors.Is(err, errInterrupted) && errors.Is(context.Cause(ctx), errInterrupted) {
		return nil // that is how it ends
	}
	return err
}
