package notify

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"xenkeep/job/config"
	"xenkeep/job/report"
)

// postOffice is a mail server that requires STARTTLS or TLS, and a password.
type postOffice struct {
	t     *testing.T
	srv   *smtp.Server
	addr  string
	ca    string // file
	mu    sync.Mutex
	busy  int // refuse this many times
	mails []letter
}

type letter struct {
	from string
	to   []string
	text string
}

func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "post"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

func newPostOffice(t *testing.T, implicit bool) *postOffice {
	t.Helper()
	p := &postOffice{t: t}
	cert, ca := certificate(t)
	p.ca = ca
	p.srv = smtp.NewServer(p)
	p.srv.Domain = "127.0.0.1"
	p.srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = l.Addr().String()
	if implicit {
		l = tls.NewListener(l, p.srv.TLSConfig)
	}
	var over sync.WaitGroup
	over.Go(func() { _ = p.srv.Serve(l) })
	t.Cleanup(func() { _ = p.srv.Close(); over.Wait() })
	return p
}

func (p *postOffice) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{p: p, c: c}, nil
}

type session struct {
	p      *postOffice
	c      *smtp.Conn
	known  bool
	letter letter
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if _, secure := s.c.TLSConnectionState(); !secure || user != "night" || password != "s3cret" {
			return smtp.ErrAuthFailed
		}
		s.known = true
		return nil
	}), nil
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if !s.known {
		return smtp.ErrAuthRequired
	}
	if s.p.busy > 0 {
		s.p.busy--
		return &smtp.SMTPError{Code: 451, Message: "try again later"}
	}
	s.letter.from = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.letter.to = append(s.letter.to, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	s.letter.text = string(text)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.mails = append(s.p.mails, s.letter)
	return err
}

func (s *session) Reset()        { s.letter = letter{} }
func (s *session) Logout() error { return nil }

func sample() *report.Report {
	return &report.Report{
		Type: "report", State: report.Partial, Job: "nightly", Machine: "xk", Started: time.Unix(1e9, 0), Ended: time.Unix(1e9+60, 0), Duration: 60,
		VMs: []report.VM{{Name: "web", State: report.OK, Snapshot: "0123456789"}, {Name: "db", State: report.Failed, Error: "SR full"}},
	}
}

func quick(context.Context, time.Duration) error { return nil }

func TestMail(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"starttls", "tls"} {
		p := newPostOffice(t, kind == "tls")
		m := config.Mail{
			Server: p.addr, TLS: kind, User: "night", Password: config.Secret{File: secret}, CAFile: p.ca,
			From: "xenkeep@example.net", To: []string{"a@example.net", "B <b@example.net>"},
		}
		s := Sender{Config: config.Notify{Mail: &m}, Wait: quick}
		p.busy = 2
		if errs := s.End(t.Context(), sample()); len(errs) > 0 {
			t.Fatalf("%s: %v", kind, errs)
		}
		if len(p.mails) != 1 || p.mails[0].from != "xenkeep@example.net" || !slices.Equal(p.mails[0].to, []string{"a@example.net", "b@example.net"}) {
			t.Fatalf("%s: %+v", kind, p.mails)
		}
		for _, want := range []string{"Subject: xenkeep partial: nightly on xk, 1 of 2 VMs", "STATE", "failed db: SR full"} {
			if !strings.Contains(p.mails[0].text, want) {
				t.Errorf("%s: the mail lacks %q:\n%s", kind, want, p.mails[0].text)
			}
		}
		// Only for failures, and this is none.
		m.When = config.OnFailure
		fine := sample()
		fine.State = report.OK
		if errs := s.End(t.Context(), fine); len(errs) > 0 || len(p.mails) != 1 {
			t.Errorf("%s: %v, %d mails", kind, errs, len(p.mails))
		}
		// Notifications that cannot be sent are reported, after at most the configured
		// number of attempts.
		for _, c := range []struct {
			what string
			with func(*config.Mail)
		}{
			{"wrong password", func(m *config.Mail) { m.Password = config.Secret{Command: "echo wrong"} }},
			{"no password", func(m *config.Mail) { m.Password = config.Secret{File: secret + "x"} }},
			{"unknown CA", func(m *config.Mail) { m.CAFile = "" }},
			{"in the clear", func(m *config.Mail) { m.TLS = "none" }},
			{"nobody there", func(m *config.Mail) { m.Server = "127.0.0.1:1" }},
			{"too busy", func(m *config.Mail) { p.busy = 9 }},
		} {
			bad := m
			c.with(&bad)
			s := Sender{Config: config.Notify{Mail: &bad}, Wait: quick}
			if errs := s.End(t.Context(), sample()); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "mail by ") {
				t.Errorf("%s, %s: %v", kind, c.what, errs)
			}
		}
		if len(p.mails) != 1 || p.busy != 6 {
			t.Errorf("%s: %d mails, %d refusals left", kind, len(p.mails), p.busy)
		}
	}
}

func TestWebhookAndPing(t *testing.T) {
	var mu sync.Mutex
	var got []string
	fail := 0
	status := http.StatusServiceUnavailable
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if fail > 0 {
			fail--
			w.WriteHeader(status)
			return
		}
		if r.URL.Path == "/hook" {
			var rep report.Report
			if err := json.Unmarshal(body, &rep); err != nil || rep.Type != "report" || len(rep.VMs) != 2 || r.Header.Get("Authorization") != "Bearer tok" {
				t.Errorf("webhook: %v %s %v", err, body, r.Header)
			}
		}
		got = append(got, r.Method+" "+r.URL.Path)
	}))
	defer srv.Close()
	n := config.Notify{
		Webhook: &config.Webhook{URL: srv.URL + "/hook", Token: config.Secret{Command: "echo tok"}},
		Ping:    &config.Ping{Start: srv.URL + "/start", Success: srv.URL + "/ok", Failure: srv.URL + "/fail"},
	}
	s := Sender{Config: n, Wait: quick}
	rep := sample()
	errs := s.Start(t.Context(), rep)
	fail = 2
	errs = append(errs, s.End(t.Context(), rep)...)
	rep.State = report.OK
	errs = append(errs, s.End(t.Context(), rep)...)
	if want := []string{"GET /start", "POST /hook", "POST /fail", "POST /hook", "POST /ok"}; len(errs) > 0 || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, errs)
	}
	// Refused, once; overloaded, three times; the error does not contain the URL.
	got, fail, status = nil, 1, http.StatusForbidden
	n.Ping = nil
	s.Config = n
	if errs := s.End(t.Context(), rep); len(errs) != 1 || !strings.Contains(errs[0].Error(), "403") || fail != 0 || len(got) > 0 || strings.Contains(errs[0].Error(), "/hook") {
		t.Errorf("%v %v", got, errs)
	}
	fail, status = 5, http.StatusBadGateway
	if errs := s.End(t.Context(), rep); len(errs) != 1 || fail != 2 {
		t.Errorf("%v, %d left", errs, fail)
	}
	fail = 0
	s.Wait = func(context.Context, time.Duration) error { return errors.New("stopped") }
	s.Config.Webhook.URL = "http://127.0.0.1:1/secret"
	if errs := s.End(t.Context(), rep); len(errs) != 1 || strings.Contains(errs[0].Error(), "secret") {
		t.Error(errs)
	}
}
