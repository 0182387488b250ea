package xapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Config says which pool to log in to, and as whom.
type Config struct {
	// URL is https://HOST[:PORT] of any member of the pool; the scheme may be
	// left out. Other members are spoken to with the same scheme, and on the
	// same port unless the pool gives another.
	URL      string
	User     string // "root" if empty
	Password string
	Trust    Trust
	// UserAgent names this program to the pool, as originator of its
	// sessions and in HTTP heads; "xenkeep" if empty.
	UserAgent string
	// StallTimeout is how long a transfer may stand still; 2 minutes if zero.
	StallTimeout time.Duration
	// VerdictTimeout is how long a transfer that is over is waited for on the
	// pool; 1 minute if zero.
	VerdictTimeout time.Duration
	// Pace multiplies the waits between retries, for pools that run on
	// another clock (the simulated one); 1 if zero.
	Pace float64
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

// Client is a session with a pool. Its methods may be called from many
// goroutines.
type Client struct {
	cfg    Config
	scheme string
	port   string // the configured one, for addresses without
	first  string // the configured address
	trust  *trust
	// Calls that may be repeated run over kept connections. Others get a
	// connection of their own: an idle one may just have been closed by the
	// host, and then it would be unknown whether the call was carried out.
	kept, fresh *http.Client

	mu        sync.Mutex
	session   Ref
	endpoint  string   // host:port of the master
	addresses []string // every host of the pool, as host:port
	pool      string   // UUID
	refused   error    // the pool refused the password; never asked again

	login sync.Mutex // held while logging in

	names names
}

const (
	dialTimeout      = 15 * time.Second
	handshakeTimeout = 20 * time.Second
	getterTimeout    = 5 * time.Minute
	cleanupTimeout   = 15 * time.Second
)

// Dial logs in to the pool's master. A wrong password is an error with code
// SessionAuthenticationFailed, a host that Trust does not cover an
// *UntrustedHostError. The client is to be closed.
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

// hostPort completes an address that the pool gave: a bare IP, IPv6 without
// brackets, a name, or any of them with a port.
func (c *Client) hostPort(addr string) string {
	if host, port, err := net.SplitHostPort(addr); err == nil && net.ParseIP(addr) == nil {
		return net.JoinHostPort(host, port)
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), c.port)
}

// PoolUUID is the pool's UUID.
func (c *Client) PoolUUID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pool
}

// Master is the address, with port, of the host that is spoken to.
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

// Close logs out. It works although ctx has ended.
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

// logIn opens a session at the first of the addresses that takes one, follows
// to the master, and makes sure that the pool is the one of before.
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

// explainLogIn is why no session could be had at an address, to which hops other
// hosts have led.
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

// adopt takes a new session into use: checks that the pool is the same, and
// learns its hosts and their certificates.
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
	var hosts map[Ref]Host
	if err := c.rpc(ctx, endpoint, "host.get_all_records", &hosts, session); err != nil {
		return err
	}
	addresses := make([]string, 0, len(hosts))
	for _, h := range hosts {
		if h.Address != "" {
			addresses = append(addresses, c.hostPort(h.Address))
		}
	}
	if c.scheme == "https" && c.trust.pinned() {
		// Without such records (before 8.2) the user adds the fingerprints.
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
	return nil
}

// logInAgain replaces a session that is of no use any more; where several
// calls find out at once, one of them logs in. The address may name the master.
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
