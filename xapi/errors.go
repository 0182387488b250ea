package xapi

import (
	"errors"
	"fmt"
	"html"
	"regexp"
	"strings"
)

// Code is an error code of the XAPI, as it stands on the wire. Codes are errors
// themselves so that errors.Is(err, VDIInUse) asks for one of them.
type Code string

func (c Code) Error() string { return string(c) }

// Codes that callers decide by; the table in codes.go knows all others.
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

// Errors of this package's own.
var (
	// ErrTaskLost: the pool no longer knows a task that was being waited for,
	// as after a restart of the toolstack; what it did is unknown.
	ErrTaskLost = errors.New("task lost: the pool restarted or dropped it; its outcome is unknown")
	// ErrNoVerdict: a transfer is over and its task has stayed pending.
	ErrNoVerdict = errors.New("no verdict: the task stayed pending after the transfer")
	// ErrStalled: a transfer made no progress for the time allowed.
	ErrStalled = errors.New("stalled: no data moved for the time allowed")
	// ErrOtherPool: after a new login the address turned out to lead to
	// another pool than before.
	ErrOtherPool = errors.New("the address now belongs to another pool")
	// ErrNoJSONRPC: the host answers JSON-RPC calls in XML, so it is too old.
	ErrNoJSONRPC = errors.New("host does not speak JSON-RPC: it is older than this program supports")
	// ErrIgnoreVDIs: the host cannot leave disks out of a VM snapshot.
	ErrIgnoreVDIs = errors.New("host is too old to leave disks out of a VM snapshot")
	// ErrHeadTooLong: a request would exceed the 1024 bytes that hosts accept
	// as the head of a request.
	ErrHeadTooLong = errors.New("request head exceeds 1024 bytes")
	// ErrTrailing: a stream held more bytes than its reader wanted and the
	// pool says that all is well.
	ErrTrailing = errors.New("unexpected data behind the end of the stream")
	// ErrNotFound: no object of that name or UUID.
	ErrNotFound = errors.New("not found")
)

// Error is a failure reported by the pool. Params are of a length and order
// that vary with the code and the host's version.
type Error struct {
	Code   Code
	Params []string
	// Method is the call that failed; empty for errors of tasks and streams.
	Method string

	names *names // of the objects that Params refer to, where the client knows them
}

// Error gives the sentence of the code table and the raw code in brackets.
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
			break // its parameter is the session, a secret
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

// Is makes errors.Is(err, Code) ask for the code.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == e.Code
}

// Hint says what the user can do, in one sentence; empty for unknown codes.
func (e *Error) Hint() string {
	info, _ := e.info()
	return info.Hint
}

// IsCode tells whether err is a pool error with one of the codes.
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

// HTTPError is an HTTP answer other than the one hoped for. Cause is the pool
// error behind it where the body or the task told one.
type HTTPError struct {
	Host   string // address of the host that answered
	Method string
	Path   string // without the query, which holds the session
	Status int
	Text   string // what the page says, short and without markup
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

// UntrustedHostError is a host whose certificate nothing vouches for.
type UntrustedHostError struct {
	Host        string
	Fingerprint string // SHA-256 of the certificate, hex with colons
	Cause       error  // what ordinary verification said, if it was tried
	// Pinned is set where fingerprints are given and this is none of them: the
	// host has a new certificate, or is another host.
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

// AmbiguousError is a name that several objects bear.
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

// ParseErrorPage reads the HTML page with which a host reports failure inside
// bulk requests, and returns the error that it carries as "CODE: [ p1; p2 ]",
// or nil. The page may have anything before it, such as HTTP heads: this is
// how failures appear in the body of exports (xen-api
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

// pageText is what a page says to people, for errors without a code.
func pageText(page []byte) string {
	s := html.UnescapeString(htmlTag.ReplaceAllString(string(page), " "))
	s = strings.Join(strings.Fields(strings.Map(printable, s)), " ")
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return s
}
