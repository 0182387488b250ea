package xapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config defines the pool to log in to, and the user.
type Config struct {
	// URL is https://HOST[:PORT] of any member of the pool; the scheme is
	// optional. The client uses the same scheme for the other members, and the
	// same port unless the pool reports another one.
	URL      string
	User     string // "root" if empty
	Password string
	Trust    Trust
	// UserAgent identifies this program to the pool: it is the originator of
	// its sessions and the User-Agent of its HTTP requests; "xenkeep" if empty.
	UserAgent string
	// StallTimeout is how long a transfer may make no progress before it fails;
	// 2 minutes if zero.
	StallTimeout time.Duration
	// VerdictTimeout is how long the client waits for the result of the pool's
	// task after a transfer has ended; 1 minute if zero.
	VerdictTimeout time.Duration
	// Pace multiplies the waits between retries, for pools whose clock runs at
	// another speed (the simulated one); 1 if zero.
	Pace float64
	// Trace, if set, is called after each exchange with the pool. It must be
	// safe for concurrent use.
	Trace func(TraceEvent)
	// Log, if set, receives debug records of logins, retries and redirects.
	Log *slog.Logger
}

func (c *Config) pace() func(time.Duration) time.Duration {
	factor := c.Pace
	return func(d time.Duration) time.Duration {
		if factor > 0 {
			return time.Duration(float64(d) * factor)
		}
		return d
	}
}

// Client is a session with a pool. It is safe for concurrent use.
type Client struct {
	cfg    Config
	scheme string
	port   string // port of the configured address, for addresses without one
	first  string // the configured address
	trust  *trust
	// Calls that may be repeated use kept-alive connections. Every other call
	// uses a new connection: the host may have closed an idle connection a
	// moment ago, and the client could not find out whether the call was
	// carried out.
	kept, fresh *http.Client

	mu        sync.Mutex
	session   Ref
	endpoint  string   // host:port of the master
	addresses []string // all hosts of the pool, as host:port
	pool      string   // UUID of the pool
	refused   error    // set after the pool refused the password; no login is tried after that

	login sync.Mutex // held while logging in

	names names
}

const (
	dialTimeout      = 15 * time.Second
	handshakeTimeout = 20 * time.Second
	getterTimeout    = 5 * time.Minute
	cleanupTimeout   = 15 * time.Second
)

// Dial logs in to the pool's master. If the password is wrong, it returns an
// error with the code SessionAuthenticationFailed; if Trust does not cover a
// host, an *UntrustedHostError. The caller must close the client.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.User == "" {
		cfg.User = "root"
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "xenkeep"
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = 2 * time.Minute
	}
	if cfg.VerdictTimeout == 0 {
		cfg.VerdictTimeout = time.Minute
	}
	c := &Client{cfg: cfg}
	var err error
	if c.scheme, c.first, err = parseURL(cfg.URL); err != nil {
		return nil, err
	}
	if c.scheme == "http" && !cfg.Trust.Insecure {
		return nil, &PlainError{URL: cfg.URL}
	}
	if _, c.port, err = net.SplitHostPort(c.first); err != nil {
		return nil, fmt.Errorf("pool address: %w", err)
	}
	if c.trust, err = newTrust(cfg.Trust); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return c.trust.dialTLS(ctx, addr)
		},
		MaxIdleConnsPerHost: 20,
		IdleConnTimeout:     20 * time.Second,
		DisableCompression:  true,
	}
	single := transport.Clone()
	single.DisableKeepAlives = true
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.kept = &http.Client{Transport: transport, CheckRedirect: noRedirect}
	c.fresh = &http.Client{Transport: single, CheckRedirect: noRedirect}
	if err := c.logIn(ctx, []string{c.first}); err != nil {
		c.kept.CloseIdleConnections()
		return nil, err
	}
	return c, nil
}

func parseURL(s string) (scheme, hostPort string, err error) {
	if s == "" {
		return "", "", errors.New("pool address: empty")
	}
	if !strings.Contains(s, "://") {
		if net.ParseIP(s) != nil && strings.Contains(s, ":") {
			s = "[" + s + "]"
		}
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return "", "", errors.New("pool address: want https://HOST or https://HOST:PORT")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme, net.JoinHostPort(u.Hostname(), port), nil
}

// hostPort completes an address reported by the pool: a bare IP address, an
// IPv6 address without brackets, a name, or any of these with a port.
func (c *Client) hostPort(addr string) string {
	if host, port, err := net.SplitHostPort(addr); err == nil && net.ParseIP(addr) == nil {
		return net.JoinHostPort(host, port)
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), c.port)
}

// PoolUUID returns the pool's UUID.
func (c *Client) PoolUUID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pool
}

// Master returns the address, with port, of the host that the client sends its
// calls to.
func (c *Client) Master() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endpoint
}

func (c *Client) current() (Ref, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session, c.endpoint
}

// Close logs out. It works even if ctx has ended.
func (c *Client) Close(ctx context.Context) error {
	ctx, cancel := detach(ctx, cleanupTimeout)
	defer cancel()
	c.mu.Lock()
	session, endpoint := c.session, c.endpoint
	c.session = ""
	c.mu.Unlock()
	defer c.kept.CloseIdleConnections()
	if session == "" {
		return nil
	}
	err := c.rpc(ctx, endpoint, "session.logout", nil, session)
	if IsCode(err, SessionInvalid) {
		return nil
	}
	return c.redact(err, session)
}

// logIn opens a session at the first address that accepts one, follows
// redirects to the master, and checks that the pool is the same as before.
func (c *Client) logIn(ctx context.Context, endpoints []string) error {
	var first error
	for _, endpoint := range endpoints {
		err := c.logInAt(ctx, endpoint)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil || IsCode(err, SessionAuthenticationFailed, "SESSION_AUTHORIZATION_FAILED") {
			return err
		}
	}
	return first
}

func (c *Client) logInAt(ctx context.Context, endpoint string) error {
	var session Ref
	for hops := 0; ; hops++ {
		err := c.rpc(ctx, endpoint, "session.login_with_password", &session, c.cfg.User, c.cfg.Password, "1.0", c.cfg.UserAgent)
		if err == nil {
			break
		}
		var e *Error
		if errors.As(err, &e) && e.Code == HostIsSlave && len(e.Params) > 0 && hops < 3 {
			c.debug().Debug("pool: this host is not the master", "host", endpoint, "master", e.Params[0])
			endpoint = c.hostPort(e.Params[0])
			continue
		}
		if IsCode(err, SessionAuthenticationFailed) {
			c.mu.Lock()
			c.refused = err
			c.mu.Unlock()
		}
		return c.explainLogIn(endpoint, err, hops)
	}
	if err := c.adopt(ctx, session, endpoint); err != nil {
		leave, cancel := detach(ctx, cleanupTimeout)
		defer cancel()
		_ = c.rpc(leave, endpoint, "session.logout", nil, session)
		return c.redact(err, session)
	}
	return nil
}

// explainLogIn returns an error that explains why no session could be opened at
// an address that was reached by a number of hops from other hosts.
func (c *Client) explainLogIn(endpoint string, err error, hops int) error {
	url := c.scheme + "://" + endpoint
	var lost *UnreachableError
	var page *HTTPError
	switch {
	case errors.As(err, &lost):
		err = lost
	case errors.As(err, &page) && c.scheme == "http" && page.Status == http.StatusBadRequest:
		err = &UnreachableError{url, fmt.Sprintf("%s: what answers speaks TLS", url), "begin the address with https://", err}
	case errors.As(err, &page), errors.Is(err, errNoAnswer):
		err = &UnreachableError{url, fmt.Sprintf("%s: what answers is no host of a pool (%v)", url, err), "is it the address of a host of the pool?", err}
	case IsCode(err, HostIsSlave):
		err = &UnreachableError{url, fmt.Sprintf("%s: the hosts name each other as the master (%v)", url, err), "give the master's address; xe pool-list params=master on a host names it", err}
	default:
		err = fmt.Errorf("log in at %s: %w", endpoint, err)
	}
	if hops > 0 {
		return fmt.Errorf("%s is not the master and leads to %s: %w", c.first, endpoint, err)
	}
	return err
}

// adopt starts to use a new session: it checks that the pool is the same, and
// reads the pool's hosts and their certificates.
func (c *Client) adopt(ctx context.Context, session Ref, endpoint string) error {
	var pools map[Ref]Pool
	if err := c.rpc(ctx, endpoint, "pool.get_all_records", &pools, session); err != nil {
		return err
	}
	var uuid string
	for _, p := range pools {
		uuid = p.UUID
	}
	if known := c.PoolUUID(); known != "" && known != uuid {
		return fmt.Errorf("%s: %w", endpoint, ErrOtherPool)
	}
	addresses, err := c.hostAddresses(ctx, session, endpoint)
	if err != nil {
		return err
	}
	if c.scheme == "https" && c.trust.pinned() {
		// Pools before 8.2 have no such records; there the user adds the
		// fingerprints.
		var certs map[Ref]Certificate
		if err := c.rpc(ctx, endpoint, "Certificate.get_all_records", &certs, session); err == nil {
			for _, cert := range certs {
				c.trust.learn(cert)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.endpoint, c.pool, c.addresses = session, endpoint, uuid, addresses
	c.debug().Debug("pool: logged in", "host", endpoint, "as", c.cfg.User, "hosts", len(addresses))
	return nil
}

// hostAddresses reads the addresses of all hosts of the pool.
func (c *Client) hostAddresses(ctx context.Context, session Ref, endpoint string) ([]string, error) {
	var hosts map[Ref]Host
	if err := c.rpc(ctx, endpoint, "host.get_all_records", &hosts, session); err != nil {
		return nil, err
	}
	addresses := make([]string, 0, len(hosts))
	for _, h := range hosts {
		if h.Address != "" {
			addresses = append(addresses, c.hostPort(h.Address))
		}
	}
	return addresses, nil
}

// inPool reports whether an address is that of a host of the pool. If it is not
// known, inPool reads the list of hosts again, because a host may have joined.
func (c *Client) inPool(ctx context.Context, addr string) bool {
	known := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return addr == c.first || addr == c.endpoint || slices.Contains(c.addresses, addr)
	}
	if known() {
		return true
	}
	session, endpoint := c.current()
	addresses, err := c.hostAddresses(ctx, session, endpoint)
	if err != nil {
		return false
	}
	c.mu.Lock()
	c.addresses = addresses
	c.mu.Unlock()
	return known()
}

// logInAgain replaces a session that is no longer valid. If several calls
// notice this concurrently, only one of them logs in. The address may name the
// master.
func (c *Client) logInAgain(ctx context.Context, stale Ref, address string) error {
	c.login.Lock()
	defer c.login.Unlock()
	c.mu.Lock()
	session, refused := c.session, c.refused
	endpoints := append([]string{c.endpoint, c.first}, c.addresses...)
	c.mu.Unlock()
	switch {
	case refused != nil:
		return refused
	case session == "":
		return errors.New("session: closed")
	case session != stale:
		return nil
	}
	c.debug().Debug("pool: logging in again")
	if address != "" {
		endpoints = append([]string{c.hostPort(address)}, endpoints...)
	}
	tried := make(map[string]bool)
	var list []string
	for _, e := range endpoints {
		if !tried[e] {
			tried[e] = true
			list = append(list, e)
		}
	}
	return c.logIn(ctx, list)
}
