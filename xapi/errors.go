package xapi

import (
	"errors"
	"fmt"
	"html"
	"regexp"
	"strings"
)

// Code is an error code of the XAPI, spelled as on the wire. Codes implement
// error, so that errors.Is(err, VDIInUse) tests for one of them.
type Code string

func (c Code) Error() string { return string(c) }

// Codes that callers make decisions on; the table in codes.go lists all others.
const (
	SessionInvalid              Code = "SESSION_INVALID"
	SessionAuthenticationFailed Code = "SESSION_AUTHENTICATION_FAILED"
	HostIsSlave                 Code = "HOST_IS_SLAVE"
	HostStillBooting            Code = "HOST_STILL_BOOTING"
	HandleInvalid               Code = "HANDLE_INVALID"
	UUIDInvalid                 Code = "UUID_INVALID"
	MapDuplicateKey             Code = "MAP_DUPLICATE_KEY"
	MethodUnknown               Code = "MESSAGE_METHOD_UNKNOWN"
	MessageRemoved              Code = "MESSAGE_REMOVED"
	ParameterCountMismatch      Code = "MESSAGE_PARAMETER_COUNT_MISMATCH"
	RBACPermissionDenied        Code = "RBAC_PERMISSION_DENIED"
	NoHostsAvailable            Code = "NO_HOSTS_AVAILABLE"
	OtherOperationInProgress    Code = "OTHER_OPERATION_IN_PROGRESS"
	CBTOnFailed                 Code = "SR_BACKEND_FAILURE_457"
	CBTOffFailed                Code = "SR_BACKEND_FAILURE_458"
	CBTInconsistent             Code = "SR_BACKEND_FAILURE_459"
	TaskCancelled               Code = "TASK_CANCELLED"
	VMBadPowerState             Code = "VM_BAD_POWER_STATE"
	VDIInUse                    Code = "VDI_IN_USE"
	VDIIOError                  Code = "VDI_IO_ERROR"
	VDITooLarge                 Code = "VDI_TOO_LARGE"
	VDIIncompatibleType         Code = "VDI_INCOMPATIBLE_TYPE"
	VDINotManaged               Code = "VDI_NOT_MANAGED"
	SRNoSpace                   Code = "SR_BACKEND_FAILURE_44"
	NotNewerVersion             Code = "VM_TO_IMPORT_IS_NOT_NEWER_VERSION"
	SRChainTooLong              Code = "SR_BACKEND_FAILURE_109"
)

// Errors that this package itself defines.
var (
	// ErrTaskLost: a task that the client waits for no longer exists on the
	// pool, for example after a restart of the toolstack; its outcome is
	// unknown.
	ErrTaskLost = errors.New("task lost: the pool restarted or dropped it; its outcome is unknown")
	// ErrNoVerdict: a transfer has ended and its task has stayed pending.
	ErrNoVerdict = errors.New("no verdict: the task stayed pending after the transfer")
	// ErrStalled: a transfer made no progress for the configured time.
	ErrStalled = errors.New("stalled: no data moved for the time allowed")
	// ErrOtherPool: after a new login, the address belongs to another pool than
	// before.
	ErrOtherPool = errors.New("the address now belongs to another pool")
	// ErrNoJSONRPC: the host answers JSON-RPC calls with XML, so it is too old.
	ErrNoJSONRPC = errors.New("host does not speak JSON-RPC: it is older than this program supports")
	// ErrIgnoreVDIs: the host cannot exclude disks from a VM snapshot.
	ErrIgnoreVDIs = errors.New("host is too old to leave disks out of a VM snapshot")
	// ErrHeadTooLong: a request would exceed the 1024 bytes that hosts accept
	// as the head of a request.
	ErrHeadTooLong = errors.New("request head exceeds 1024 bytes")
	// ErrTrailing: a stream contains more bytes than its reader consumed,
	// although the pool reports success.
	ErrTrailing = errors.New("unexpected data after the end of the stream")
	// ErrNotFound: no object has that name or UUID.
	ErrNotFound = errors.New("not found")
)

// Error is a failure reported by the pool. The number and order of Params
// depend on the code and the host's version.
type Error struct {
	Code   Code
	Params []string
	// Method is the call that failed; empty for errors of tasks and streams.
	Method string

	names *names // names of the objects that Params reference, as far as the client has read them
}

// Error returns the text of the code table with the raw code in brackets.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Method != "" {
		b.WriteString(e.Method + ": ")
	}
	if info, ok := e.info(); ok {
		b.WriteString(info.Text + " ")
	} else {
		b.WriteString("pool error ")
	}
	b.WriteString("[" + string(e.Code))
	for i, p := range e.Params {
		if e.Code == SessionInvalid {
			break // its parameter is the session reference, a secret
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte(' ')
		if e.names != nil {
			p = opaqueRef.ReplaceAllStringFunc(p, func(ref string) string {
				if name := e.names.of(Ref(ref)); name != "" {
					return name
				}
				return ref
			})
		}
		if len(p) > 300 {
			p = p[:300] + "..."
		}
		b.WriteString(strings.Map(printable, p))
	}
	b.WriteByte(']')
	return b.String()
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

// Is reports whether target is the code of e, so that errors.Is(err, Code)
// works.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == e.Code
}

// Hint returns the next step for the user, in one sentence; it is empty for
// unknown codes.
func (e *Error) Hint() string {
	info, _ := e.info()
	return info.Hint
}

// IsCode reports whether err is a pool error with one of the codes.
func IsCode(err error, codes ...Code) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

// HTTPError is an HTTP answer with an unexpected status. Cause is the pool
// error that caused it, if the body or the task contains one.
type HTTPError struct {
	Host   string // address of the host that answered
	Method string
	Path   string // without the query, which holds the session
	Status int
	Text   string // the text of the page, shortened and without markup
	Cause  error
}

func (e *HTTPError) Error() string {
	s := fmt.Sprintf("%s %s on %s: HTTP %d", e.Method, e.Path, e.Host, e.Status)
	switch {
	case e.Cause != nil:
		return s + ": " + e.Cause.Error()
	case e.Text != "":
		return s + ": " + e.Text
	}
	return s
}

func (e *HTTPError) Unwrap() error { return e.Cause }

// UntrustedHostError is returned for a host whose certificate is not trusted.
type UntrustedHostError struct {
	Host        string
	Fingerprint string // SHA-256 of the certificate, hex with colons
	Cause       error  // the error of ordinary certificate verification, if it was tried
	// Pinned is set if fingerprints are configured and this certificate has
	// none of them: the host has a new certificate, or it is another host.
	Pinned bool
}

func (e *UntrustedHostError) Error() string {
	s := fmt.Sprintf("host %s: certificate is not trusted; if it is the right one, trust fingerprint %s", e.Host, e.Fingerprint)
	if e.Pinned {
		s = fmt.Sprintf("host %s: certificate has fingerprint %s, which is none of those that are pinned", e.Host, e.Fingerprint)
	}
	if e.Cause != nil {
		s += " (" + e.Cause.Error() + ")"
	}
	return s
}

func (e *UntrustedHostError) Unwrap() error { return e.Cause }

// AmbiguousError is returned for a name that several objects have.
type AmbiguousError struct {
	Class string
	Name  string
	UUIDs []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%s %q: the name is not unique; use one of the UUIDs %s", e.Class, e.Name, strings.Join(e.UUIDs, ", "))
}

var (
	htmlTag  = regexp.MustCompile(`<[^>]*>`)
	htmlCode = regexp.MustCompile(`(?s)([A-Z][A-Z0-9_]{2,}): \[ (.*) \]`)
)

// ParseErrorPage parses the HTML page with which a host reports a failure
// inside bulk requests. It returns the error that the page contains as "CODE: [
// p1; p2 ]", or nil. Other text, such as HTTP headers, may precede the page:
// this is how failures appear in the body of exports (xen-api
// ocaml/libs/http-lib/http_svr.ml).
func ParseErrorPage(page []byte) *Error {
	const marker = "Additional information"
	s := string(page)
	if i := strings.LastIndex(s, marker); i >= 0 {
		s = s[i+len(marker):]
	} else if !strings.Contains(s, "<html") {
		return nil
	}
	s = html.UnescapeString(htmlTag.ReplaceAllString(s, " "))
	m := htmlCode.FindStringSubmatch(s)
	if m == nil {
		return nil
	}
	e := &Error{Code: Code(m[1])}
	if strings.TrimSpace(m[2]) != "" || strings.Contains(m[2], ";") {
		for _, p := range strings.Split(m[2], ";") {
			e.Params = append(e.Params, strings.TrimSpace(p))
		}
	}
	return e
}

// pageText returns the readable text of a page, for errors without a code.
func pageText(page []byte) string {
	s := html.UnescapeString(htmlTag.ReplaceAllString(string(page), " "))
	s = strings.Join(strings.Fields(strings.Map(printable, s)), " ")
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return s
}
