package xapi

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Trust defines which hosts are accepted as members of the pool. Hosts have
// self-signed certificates by default, so pinning fingerprints is the usual
// way. A host is trusted if its certificate has one of the fingerprints or is
// valid under the CA; if neither is configured, the system's CAs decide.
type Trust struct {
	// Fingerprints are SHA-256 sums of certificates, in hex, with or without
	// colons. After login, the client reads the certificates of the other hosts
	// from the pool if it has records of them (8.2 and later).
	Fingerprints []string
	// CAFile holds CA certificates in PEM.
	CAFile string
	// AnyName accepts a certificate of the CA regardless of the host name that
	// it was issued for: pools address their hosts by bare IP, certificates
	// often do not contain it.
	AnyName bool
	// Insecure accepts any host, and plain HTTP.
	Insecure bool
}

// trust is a prepared Trust, with the method to open connections under it.
type trust struct {
	insecure, anyName, fixed bool
	roots                    *x509.CertPool // nil: the system's roots
	useCA                    bool
	sessions                 tls.ClientSessionCache

	mu   sync.RWMutex
	pins map[[sha256.Size]byte]bool
}

func newTrust(cfg Trust) (*trust, error) {
	t := &trust{
		insecure: cfg.Insecure,
		anyName:  cfg.AnyName,
		fixed:    len(cfg.Fingerprints) > 0,
		useCA:    cfg.CAFile != "" || len(cfg.Fingerprints) == 0,
		sessions: tls.NewLRUClientSessionCache(64),
		pins:     make(map[[sha256.Size]byte]bool),
	}
	for _, f := range cfg.Fingerprints {
		pin, err := parseFingerprint(f)
		if err != nil {
			return nil, err
		}
		t.pins[pin] = true
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA file: %w", err)
		}
		t.roots = x509.NewCertPool()
		if !t.roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file %s: no certificate in it", cfg.CAFile)
		}
	}
	return t, nil
}

func parseFingerprint(s string) (pin [sha256.Size]byte, err error) {
	clean := strings.TrimSpace(fingerprintWords.ReplaceAllString(s, ""))
	b, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(clean))
	switch {
	case err == nil && len(b) == len(pin):
		copy(pin[:], b)
		return pin, nil
	case err == nil && (len(b) == 20 || len(b) == 16):
		return pin, fmt.Errorf("fingerprint %.100q: this is a SHA-1 or MD5 sum: want a SHA-256 sum as 64 hex digits", s)
	}
	return pin, fmt.Errorf("fingerprint %.100q: want a SHA-256 sum as 64 hex digits", s)
}

// fingerprintWords matches the words that programs write before a sum: "SHA256
// Fingerprint=", "sha256:".
var fingerprintWords = regexp.MustCompile(`(?i)^\s*(sha-?256|sha-?1|md5)?\s*(fingerprint)?\s*[=:]?\s*`)

// CleanFingerprint returns a SHA-256 fingerprint in the form of Fingerprint. It
// accepts the common forms: with or without colons, and with the words that
// openssl writes before it.
func CleanFingerprint(s string) (string, error) {
	pin, err := parseFingerprint(s)
	if err != nil {
		return "", err
	}
	return colons(pin[:]), nil
}

// Fingerprint returns the SHA-256 sum of a certificate (its DER form) in the
// usual form: upper-case hex with colons.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return colons(sum[:])
}

func colons(sum []byte) string {
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

func (t *trust) pinned() bool { return t.fixed && !t.insecure }

// learn pins a host's certificate that a trusted pool has listed. It ignores
// CAs, and certificates that hosts present only to each other, because clients
// never see them.
func (t *trust) learn(cert Certificate) {
	if cert.Type != "" && cert.Type != "host" {
		return
	}
	for _, f := range []string{cert.FingerprintSHA256, cert.Fingerprint} {
		if pin, err := parseFingerprint(f); err == nil {
			t.mu.Lock()
			t.pins[pin] = true
			t.mu.Unlock()
		}
	}
}

func (t *trust) verify(host string, state tls.ConnectionState) error {
	if t.insecure {
		return nil
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("host shows no certificate")
	}
	leaf := state.PeerCertificates[0]
	t.mu.RLock()
	known := t.pins[sha256.Sum256(leaf.Raw)]
	t.mu.RUnlock()
	if known {
		return nil
	}
	untrusted := &UntrustedHostError{Host: host, Fingerprint: Fingerprint(leaf.Raw), Pinned: t.fixed}
	if !t.useCA {
		return untrusted
	}
	opts := x509.VerifyOptions{Roots: t.roots, Intermediates: x509.NewCertPool()}
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if !t.anyName {
		opts.DNSName = host
	}
	if _, err := leaf.Verify(opts); err != nil {
		untrusted.Cause = err
		return untrusted
	}
	return nil
}

// dialTLS opens a connection to addr (host:port) and verifies the host.
func (t *trust) dialTLS(ctx context.Context, addr string) (net.Conn, error) {
	raw, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		raw.Close()
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		ServerName: host,
		MinVersion: tls.VersionTLS12,
		// The verify method below decides instead, for pinned and self-signed
		// certificates; it runs for resumed sessions too.
		InsecureSkipVerify:          true,
		VerifyConnection:            func(state tls.ConnectionState) error { return t.verify(host, state) },
		ClientSessionCache:          t.sessions,
		DynamicRecordSizingDisabled: true, // full records from the start, because these are bulk streams
	})
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &handshakeError{err}
	}
	return conn, nil
}

// dial opens a connection for a bulk transfer, with TLS if the pool is
// addressed by https.
func (c *Client) dial(ctx context.Context, addr string) (conn net.Conn, err error) {
	if c.scheme == "https" {
		conn, err = c.trust.dialTLS(ctx, addr)
	} else {
		conn, err = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, c.unreachable(ctx, addr, err)
	}
	return conn, nil
}

// PlainError is returned by Dial for an address with plain HTTP, unless
// Trust.Insecure is set.
type PlainError struct{ URL string }

func (e *PlainError) Error() string {
	return fmt.Sprintf("pool address %s: plain HTTP would send the password and all data in clear text", e.URL)
}

// Hint returns the next step for the user.
func (e *PlainError) Hint() string {
	return "begin the address with https://; for a test pool without TLS, --pool-insecure (in a config: insecure = true) permits plain HTTP"
}
