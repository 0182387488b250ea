package xapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Limits of messages: hosts accept requests of at most 300 KiB (xen-api
// ocaml/xapi-consts/constants.ml); the client accepts answers of at most 512
// MiB, and before it is logged in, of 1 MiB.
const (
	maxRequest  = 300 << 10
	maxResponse = 512 << 20
	maxGreeting = 1 << 20
)

// answerLimit returns the greatest length of an answer. What answers before the
// login may be no host of a pool at all, and other answers than 200 are pages for
// people.
func answerLimit(method string, status int) int64 {
	switch {
	case status != http.StatusOK:
		return maxPage
	case strings.HasPrefix(method, "session.login"):
		return maxGreeting
	}
	return maxResponse
}

// Call makes one call with the client's session as its first parameter and
// decodes the answer into result, unless result is nil. It renews a session
// that the pool has dropped once, and follows a change of the master. After a
// lost connection, it repeats calls that change nothing, or whose repetition
// has no further effect (see repeatable); it makes all other calls only once.
func (c *Client) Call(ctx context.Context, method string, result any, args ...any) error {
	if !repeatable(method) {
		return c.callOnce(ctx, method, result, args)
	}
	broken := 0
	return c.Retry(ctx, func(ctx context.Context) error {
		session, _ := c.current()
		err := c.callOnce(ctx, method, result, args)
		var e *Error
		switch {
		case errors.As(err, &e) && e.Code != HostStillBooting:
			return final{err} // the caller handles the pool's answer
		case lostConnection(err):
			if broken++; broken >= 2 { // the master may have moved
				if lerr := c.logInAgain(ctx, session, ""); IsCode(lerr, SessionAuthenticationFailed) || errors.Is(lerr, ErrOtherPool) {
					return final{lerr}
				}
			}
		}
		return err
	})
}

func (c *Client) callOnce(ctx context.Context, method string, result any, args []any) error {
	for again := false; ; again = true {
		session, endpoint := c.current()
		if session == "" {
			return errors.New(method + ": session: closed")
		}
		err := c.rpc(ctx, endpoint, method, result, append([]any{session}, args...)...)
		var e *Error
		if !errors.As(err, &e) || again {
			return c.redact(err, session)
		}
		switch e.Code {
		case HostIsSlave: // refused without any effect
			var master string
			if len(e.Params) > 0 {
				master = e.Params[0]
			}
			if lerr := c.logInAgain(ctx, session, master); lerr != nil {
				return lerr
			}
		case SessionInvalid:
			if lerr := c.logInAgain(ctx, session, ""); lerr != nil {
				return fmt.Errorf("%s: %w", method, lerr)
			}
			if !repeatable(method) {
				return c.redact(err, session)
			}
		default:
			return c.redact(err, session)
		}
	}
}

// repeatable is the only table of calls that may be made twice: reads, setting
// a field to a value, and bringing an object into a state that it may already
// have. All other calls (create, snapshot, clone, every Async call, ...) would
// have their effect twice.
func repeatable(method string) bool {
	class, name, ok := strings.Cut(method, ".")
	if !ok || class == "Async" || class == "session" {
		return false
	}
	for _, prefix := range []string{"get_", "set_", "remove_", "list"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	switch name {
	case "destroy", "cancel", "from", "inject", "plug", "unplug", "scan", "update", "enable_cbt", "disable_cbt", "data_destroy":
		return true
	}
	return false
}

// readOnly reports whether a method is a getter. Getters never wait in a queue
// of the server.
func readOnly(method string) bool {
	_, name, _ := strings.Cut(method, ".")
	return strings.HasPrefix(name, "get_") && name != "get_nbd_info"
}

type request struct {
	Version string `json:"jsonrpc"`
	Method  string `json:"method"`
	Params  []any  `json:"params"`
	ID      int    `json:"id"`
}

// rpc makes one call at endpoint, without retries, and traces it.
func (c *Client) rpc(ctx context.Context, endpoint, method string, result any, params ...any) error {
	began := time.Now()
	size, err := c.exchange(ctx, endpoint, method, result, params)
	if c.cfg.Trace != nil {
		var session Ref
		if len(params) > 0 {
			session, _ = params[0].(Ref)
		}
		e := TraceEvent{Kind: TraceCall, Host: endpoint, Method: method, Args: summaries(method, params)}
		if err == nil {
			e.Result = fmt.Sprintf("%d bytes", size)
		}
		c.trace(began, e, session, err)
	}
	return err
}

// exchange sends a call to endpoint, decodes the answer into result, and returns
// the size of the answer.
func (c *Client) exchange(ctx context.Context, endpoint, method string, result any, params []any) (size int, err error) {
	if readOnly(method) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, getterTimeout)
		defer cancel()
	}
	body, err := json.Marshal(request{"2.0", method, params, 1})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", method, err)
	}
	if len(body) > maxRequest {
		return 0, fmt.Errorf("%s: request of %d bytes exceeds the %d that hosts take", method, len(body), maxRequest)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.scheme+"://"+endpoint+"/jsonrpc", bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", method, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", c.cfg.UserAgent)
	client := c.fresh
	if repeatable(method) {
		client = c.kept
		req.Header["Idempotency-Key"] = nil // lets net/http itself repeat the request on a stale connection; the header is not sent
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", method, c.unreachable(ctx, endpoint, err))
	}
	defer resp.Body.Close()
	limit := answerLimit(method, resp.StatusCode)
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s: read answer: %w", method, err)
	case int64(len(data)) > limit && resp.StatusCode == http.StatusOK:
		return 0, fmt.Errorf("%s: answer exceeds %d bytes: %w", method, limit, errNoAnswer)
	case resp.StatusCode != http.StatusOK:
		h := &HTTPError{Host: endpoint, Method: http.MethodPost, Path: "/jsonrpc", Status: resp.StatusCode, Text: pageText(data)}
		return 0, fmt.Errorf("%s: %w", method, h)
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "text/xml"):
		return 0, fmt.Errorf("%s: %w", method, ErrNoJSONRPC)
	}
	raw, err := decodeAnswer(data)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			e.Method = method
			return len(data), e
		}
		return 0, fmt.Errorf("%s: %w", method, err)
	}
	if result == nil {
		return len(data), nil
	}
	if err := json.Unmarshal(raw, result); err != nil {
		return 0, fmt.Errorf("%s: decode answer: %w", method, err)
	}
	return len(data), nil
}

// errNoAnswer marks an answer that no host of a pool would send.
var errNoAnswer = errors.New("answer is not JSON-RPC")

// decodeAnswer parses an answer. API failures have the form {code, message,
// data}, or are the array [CODE, p1, ...] from hosts before 7.3 and from hosts
// that fail before they have read the version of the request; both become
// *Error.
func decodeAnswer(data []byte) (json.RawMessage, error) {
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if len(answer.Error) == 0 || string(answer.Error) == "null" {
		if answer.Result == nil {
			return nil, errors.New("answer holds neither result nor error")
		}
		return answer.Result, nil
	}
	var list []json.RawMessage
	if answer.Error[0] == '[' {
		if err := json.Unmarshal(answer.Error, &list); err != nil || len(list) == 0 {
			return nil, errors.New("answer holds an error of unknown form")
		}
		return nil, &Error{Code: Code(text(list[0])), Params: texts(list[1:])}
	}
	var object struct {
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(answer.Error, &object); err != nil || object.Message == "" {
		return nil, errors.New("answer holds an error of unknown form")
	}
	if json.Unmarshal(object.Data, &list) != nil && len(object.Data) > 0 {
		list = []json.RawMessage{object.Data}
	}
	return nil, &Error{Code: Code(object.Message), Params: texts(list)}
}

func texts(list []json.RawMessage) []string {
	out := make([]string, len(list))
	for i, raw := range list {
		out[i] = text(raw)
	}
	return out
}

// text returns the content of a JSON string, or the raw text of any other
// value.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// redact removes the session reference and the password from a pool error's
// parameters: the holder of either has all rights of its user. It also adds the
// names of the referenced objects to the error.
func (c *Client) redact(err error, session Ref) error {
	var e *Error
	if errors.As(err, &e) {
		for i, p := range e.Params {
			e.Params[i] = c.mask(p, session)
		}
	}
	return c.named(err)
}
