// Package notify sends notifications of a run: by e-mail, by a webhook, and by
// requests to URLs that a dead man's switch monitors. Notifications that cannot be
// sent are errors for the caller to report; a backup never fails because of them.
package notify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"xenkeep/job/config"
	"xenkeep/job/report"
)

const (
	defaultAttempts = 3
	defaultTimeOut  = 30 * time.Second
)

// Sender sends the notifications of a config.
type Sender struct {
	Config config.Notify
	// Wait waits between attempts; nil waits by the real clock.
	Wait func(ctx context.Context, d time.Duration) error
}

// Start reports that a run begins.
func (s *Sender) Start(ctx context.Context, r *report.Report) []error {
	if p := s.Config.Ping; p != nil && p.Start != "" {
		return errs(s.ping(ctx, "ping start", p.Start, nil))
	}
	return nil
}

// End reports the end of a run. It returns an error for each notification that could
// not be sent.
func (s *Sender) End(ctx context.Context, r *report.Report) []error {
	var all []error
	wanted := func(w config.When) bool { return w != config.OnFailure || r.State != report.OK }
	if m := s.Config.Mail; m != nil && wanted(m.When) {
		all = append(all, s.mail(ctx, m, r))
	}
	if w := s.Config.Webhook; w != nil && wanted(w.When) {
		all = append(all, s.webhook(ctx, w, r))
	}
	if p := s.Config.Ping; p != nil {
		what, to := "ping success", p.Success
		if r.State != report.OK {
			what, to = "ping failure", p.Failure
		}
		if to != "" {
			all = append(all, s.ping(ctx, what, to, []byte(r.Subject())))
		}
	}
	return errs(all...)
}

// Tried is the result of one notification in a test.
type Tried struct {
	Channel string // "mail", "webhook", "ping start", "ping failure" or "ping success"
	To      string // the mail's receivers, or the host of a URL: the rest may be secret
	Err     error
}

// Test sends r through every configured channel, for whichever result. The ping for
// success comes last, so that the monitoring service is in its normal state
// afterwards.
func (s *Sender) Test(ctx context.Context, r *report.Report) []Tried {
	var list []Tried
	if m := s.Config.Mail; m != nil {
		list = append(list, Tried{"mail", strings.Join(m.To, ", "), s.mail(ctx, m, r)})
	}
	if w := s.Config.Webhook; w != nil {
		list = append(list, Tried{"webhook", hostOf(w.URL), s.webhook(ctx, w, r)})
	}
	if p := s.Config.Ping; p != nil {
		for _, x := range []struct {
			what, to string
			body     []byte
		}{{"ping start", p.Start, nil}, {"ping failure", p.Failure, []byte(r.Subject())}, {"ping success", p.Success, []byte(r.Subject())}} {
			if x.to != "" {
				list = append(list, Tried{x.what, hostOf(x.to), s.ping(ctx, x.what, x.to, x.body)})
			}
		}
	}
	return list
}

func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil {
		return u.Host
	}
	return address
}

func errs(all ...error) []error {
	var list []error
	for _, err := range all {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

// again calls try until it succeeds, or until the maximum of attempts.
func (s *Sender) again(ctx context.Context, attempts int, timeOut time.Duration, try func(ctx context.Context) error) error {
	wait := s.Wait
	if wait == nil {
		wait = func(ctx context.Context, d time.Duration) error {
			select {
			case <-time.After(d):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	for i, pause := 1, 2*time.Second; ; i, pause = i+1, 2*pause {
		one, cancel := context.WithTimeout(ctx, timeOut)
		err := try(one)
		cancel()
		var final *finalError
		if err == nil || i >= cmp.Or(attempts, defaultAttempts) || errors.As(err, &final) || ctx.Err() != nil {
			return err
		}
		if werr := wait(ctx, pause); werr != nil {
			return err
		}
	}
}

// finalError is an error that another attempt would return, too.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

func (s *Sender) ping(ctx context.Context, what, to string, body []byte) error {
	p := s.Config.Ping
	err := s.again(ctx, p.Attempts, p.TimeOut.Or(defaultTimeOut), func(ctx context.Context) error {
		method := http.MethodGet
		if body != nil {
			method = http.MethodPost
		}
		return send(ctx, method, to, "text/plain; charset=utf-8", "", body)
	})
	return named(what, to, err)
}

func (s *Sender) webhook(ctx context.Context, w *config.Webhook, r *report.Report) error {
	body, err := json.Marshal(r)
	if err != nil {
		return named("webhook", w.URL, err)
	}
	token := ""
	if !w.Token.IsZero() {
		p, err := w.Token.Read(ctx)
		if err != nil {
			return named("webhook", w.URL, err)
		}
		token = string(p)
	}
	err = s.again(ctx, w.Attempts, w.TimeOut.Or(defaultTimeOut), func(ctx context.Context) error {
		return send(ctx, http.MethodPost, w.URL, "application/json", token, body)
	})
	return named("webhook", w.URL, err)
}

// named returns the error of a notification with its channel and host. The rest of a
// URL is left out, because it is often secret.
func named(what, to string, err error) error {
	if err == nil {
		return nil
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("%s to %s: %w", what, hostOf(to), err)
}

func send(ctx context.Context, method, to, kind, token string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return &finalError{err}
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("User-Agent", "xenkeep")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	err = fmt.Errorf("the answer is %s", resp.Status)
	if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout {
		return &finalError{err}
	}
	return err
}

func (s *Sender) mail(ctx context.Context, m *config.Mail, r *report.Report) error {
	err := s.again(ctx, m.Attempts, 2*defaultTimeOut, func(ctx context.Context) error { return sendMail(ctx, m, r) })
	if err != nil {
		return fmt.Errorf("mail by %s: %w", m.Server, err)
	}
	return nil
}

func sendMail(ctx context.Context, m *config.Mail, r *report.Report) error {
	msg := mail.NewMsg()
	if err := errors.Join(msg.From(m.From), msg.To(m.To...)); err != nil {
		return &finalError{err}
	}
	msg.Subject(r.Subject())
	msg.SetDate()
	msg.SetMessageID()
	var text bytes.Buffer
	if err := r.Text(&text); err != nil {
		return &finalError{err}
	}
	msg.SetBodyString(mail.TypeTextPlain, text.String())
	host, port, err := net.SplitHostPort(m.Server)
	if err != nil {
		host, port = m.Server, ""
	}
	opts := []mail.Option{mail.WithTimeout(defaultTimeOut)}
	switch cmp.Or(m.TLS, "starttls") {
	case "starttls":
		opts = append(opts, mail.WithTLSPolicy(mail.TLSMandatory))
		port = cmp.Or(port, "587")
	case "tls":
		opts = append(opts, mail.WithSSL())
		port = cmp.Or(port, "465")
	default:
		opts = append(opts, mail.WithTLSPolicy(mail.NoTLS))
		port = cmp.Or(port, "25")
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return &finalError{fmt.Errorf("port %q is no number", port)}
	}
	opts = append(opts, mail.WithPort(n))
	conf := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if m.CAFile != "" {
		pem, err := os.ReadFile(m.CAFile)
		if err != nil {
			return &finalError{err}
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return &finalError{fmt.Errorf("%s holds no certificate", m.CAFile)}
		}
	}
	opts = append(opts, mail.WithTLSConfig(conf))
	if m.User != "" {
		password, err := m.Password.Read(ctx)
		if err != nil {
			return &finalError{err}
		}
		auth := mail.SMTPAuthAutoDiscover
		if m.TLS == "none" {
			auth = mail.SMTPAuthPlainNoEnc // the config requests it: the password is sent in clear text
		}
		opts = append(opts, mail.WithSMTPAuth(auth), mail.WithUsername(m.User), mail.WithPassword(string(password)))
	}
	c, err := mail.NewClient(host, opts...)
	if err != nil {
		return &finalError{err}
	}
	err = c.DialAndSendWithContext(ctx, msg)
	var sent *mail.SendError
	if errors.As(err, &sent) && !sent.IsTemp() {
		return &finalError{err}
	}
	return err
}
