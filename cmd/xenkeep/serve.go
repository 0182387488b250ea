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
	repository             repositoryFlags
	disk                   string
	listen, socket         string
	cert, key, clientCA    string
	insecure               bool
	cache                  byteSize
	listenGiven, tlsWanted bool
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

NBD knows no passwords: whoever reaches the address can read. So it listens on this
machine alone, unless TLS is set up or --insecure says otherwise; --tls-client-ca lets
in only those with a certificate.`,
		Example: `  xenkeep serve nbd latest:web
  qemu-img convert -O qcow2 nbd://localhost/xvda web.qcow2
  xenkeep serve nbd --listen :10809 --tls-cert cert.pem --tls-key key.pem --tls-client-ca ca.pem`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return err
			}
			o.listenGiven = cmd.Flags().Changed("listen")
			return o.check(len(args) > 0)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runServeNBD(cmd, &o, args) },
	}
	o.repository.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.disk, "disk", "", "serve this disk of SNAPSHOT alone: its `device`, VDI or name")
	s.StringVar(&o.listen, "listen", "localhost:10809", "`address` to listen on")
	s.StringVar(&o.socket, "socket", "", "listen on this Unix socket, a `file` that this user alone can use")
	s.StringVar(&o.cert, "tls-cert", "", "demand TLS: `file` of the server's certificate (PEM)")
	s.StringVar(&o.key, "tls-key", "", "`file` of its key (PEM)")
	s.StringVar(&o.clientCA, "tls-client-ca", "", "let in only clients with a certificate of this CA: a `file` (PEM)")
	s.BoolVar(&o.insecure, "insecure", false, "serve other machines without TLS")
	s.Var(&o.cache, "cache", "keep at most this `size` in memory")
	return cmd
}

func (o *serveNBDOptions) check(snapshot bool) error {
	o.tlsWanted = o.cert != "" || o.key != "" || o.clientCA != ""
	switch {
	case o.socket != "" && o.listenGiven:
		return usagef("--listen or --socket, not both")
	case o.disk != "" && !snapshot:
		return usagef("--disk goes with a SNAPSHOT")
	case o.tlsWanted && (o.cert == "" || o.key == ""):
		return usagef("TLS needs both --tls-cert and --tls-key")
	case o.tlsWanted && o.insecure:
		return usagef("--insecure goes without TLS")
	}
	if o.socket == "" && !o.tlsWanted && !o.insecure {
		host, _, err := net.SplitHostPort(o.listen)
		if err != nil {
			return usagef("--listen: %w", err)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return usagef("%s can be reached from other machines, and NBD knows no passwords: give --tls-cert and --tls-key, or --insecure", o.listen)
		}
	}
	return nil
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
	if o.socket == "" {
		if l, err = new(net.ListenConfig).Listen(ctx, "tcp", o.listen); err != nil {
			return nil, "", err
		}
		return l, scheme + "://" + l.Addr().String(), nil
	}
	if st, err := os.Lstat(o.socket); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, "", fmt.Errorf("%s: %w", o.socket, job.ErrExists)
		}
		if c, err := new(net.Dialer).DialContext(ctx, "unix", o.socket); err == nil {
			_ = c.Close()
			return nil, "", fmt.Errorf("%s: something listens on it: %w", o.socket, job.ErrExists)
		}
		if err := os.Remove(o.socket); err != nil {
			return nil, "", err
		}
	}
	if l, err = new(net.ListenConfig).Listen(ctx, "unix", o.socket); err != nil {
		return nil, "", err
	}
	if err := os.Chmod(o.socket, 0o600); err != nil {
		return nil, "", errors.Join(err, l.Close())
	}
	return l, scheme + "+unix:///?socket=" + o.socket, nil
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
	so := browse.NBDOptions{Disk: o.disk, TLS: conf, Cache: int64(o.cache), Log: func(text string) { tell(stderr, oneLine(text), "") }}
	if len(args) > 0 {
		if so.Snapshot, err = resolve(ctx, r, args[0], stderr); err != nil {
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
