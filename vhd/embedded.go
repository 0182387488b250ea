package vhd

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// EmbeddedError is an HTTP response found in place of the rest of a VHD.
// XenServer sends the status 200 before it accesses the disk; it reports a
// later failure by a second, complete response in the body (xen-api
// ocaml/libs/http-lib/http_svr.ml).
type EmbeddedError struct {
	Status int      // 500
	Code   string   // XAPI's error code; empty if the page contains none
	Params []string // its parameters
	Text   string   // the text of the page
}

func (e *EmbeddedError) Error() string {
	if e.Code != "" {
		return fmt.Sprintf("vhd: the server ended the stream with HTTP %d: %s %q", e.Status, e.Code, e.Params)
	}
	return fmt.Sprintf("vhd: the server ended the stream with HTTP %d: %s", e.Status, e.Text)
}

// findEmbedded looks for a response at the end of tail. Data of the guest may
// look like one, so it must end exactly at the end of tail. An incomplete
// response is accepted only if it is everything that was received (whole).
func findEmbedded(tail []byte, whole bool) *EmbeddedError {
	for end := len(tail); ; {
		at := bytes.LastIndex(tail[:end], []byte("HTTP/1."))
		if at < 0 {
			return nil
		}
		if e := parseEmbedded(tail[at:], whole && at == 0); e != nil {
			return e
		}
		end = at
	}
}

// parseEmbedded parses p as one error response. Unless cut is set, p must be
// complete: it must have the length given by its Content-Length or, without
// one, end with </html>.
func parseEmbedded(p []byte, cut bool) *EmbeddedError {
	head, body, complete := bytes.Cut(p, []byte("\r\n\r\n"))
	if !complete && !cut {
		return nil
	}
	line, fields, _ := strings.Cut(string(head), "\r\n")
	// HTTP/1.1 500 Internal Error
	if len(line) < len("HTTP/1.1 500") || line[8] != ' ' {
		return nil
	}
	status, err := strconv.Atoi(line[9:12])
	if err != nil || status < 400 || status > 599 {
		return nil
	}
	if !cut && !wholeBody(fields, body) {
		return nil
	}
	e := &EmbeddedError{Status: status}
	e.Code, e.Params, e.Text = parsePage(string(body))
	if e.Text == "" {
		e.Text = strings.TrimSpace(line[9:])
	}
	return e
}

func wholeBody(fields string, body []byte) bool {
	for field := range strings.SplitSeq(fields, "\r\n") {
		name, value, _ := strings.Cut(field, ":")
		if strings.EqualFold(name, "content-length") {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			return err == nil && n == len(body)
		}
	}
	return bytes.HasSuffix(bytes.TrimSpace(body), []byte("</html>"))
}

var (
	pageTag  = regexp.MustCompile(`<[^>]*>`)
	pageCode = regexp.MustCompile(`(?s)^([A-Z][A-Z0-9_]*): \[ (.*) \]$`)
)

// parsePage extracts code and parameters from xapi's error page:
//
//	<html><body><h1>HTTP 500 internal server error</h1>An unexpected error
//	occurred; ...<h1> Additional information </h1>CODE: [ p1; p2 ]</body></html>
//
// The parameters are joined by "; " without escaping: a parameter that contains
// "; " is returned as two.
func parsePage(page string) (code string, params []string, text string) {
	_, info, found := strings.Cut(page, "Additional information")
	if !found {
		return "", nil, strings.TrimSpace(pageTag.ReplaceAllString(page, " "))
	}
	info = strings.TrimPrefix(strings.TrimLeft(info, " "), "</h1>")
	if i := strings.LastIndex(info, "</body>"); i >= 0 {
		info = info[:i]
	}
	info = strings.TrimSpace(info)
	m := pageCode.FindStringSubmatch(info)
	if m == nil {
		return "", nil, info
	}
	if m[2] != "" {
		params = strings.Split(m[2], "; ")
	}
	return m[1], params, info
}
