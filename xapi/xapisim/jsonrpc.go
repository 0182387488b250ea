package xapisim

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// errRequest is returned for a body that is valid JSON but not a request.
var errRequest = errors.New("Jsonrpc.Malformed_method_request")

// parseJSONRPC parses a JSON-RPC 1.0 or 2.0 request. It refuses notifications
// (no id, or null), batches and other versions.
func parseJSONRPC(body []byte) (*request, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, errors.New(`Yojson__Common.Json_error("Blank input data")`)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var top any
	if err := d.Decode(&top); err != nil {
		return nil, err
	}
	m, ok := top.(map[string]any)
	if !ok {
		return nil, errRequest
	}
	req := &request{params: []any{}}
	if req.method, ok = m["method"].(string); !ok {
		return nil, errRequest
	}
	if v, ok := m["jsonrpc"]; ok {
		if v != "2.0" {
			return nil, errRequest
		}
		req.v2 = true
	}
	switch id := m["id"].(type) {
	case string:
		req.id = string(appendJSON(nil, id))
	case json.Number:
		if _, err := id.Int64(); err != nil {
			return nil, errRequest
		}
		req.id = id.String()
	default:
		return nil, errRequest
	}
	if p, ok := m["params"]; ok {
		v, err := fromJSON(p, 0)
		if err != nil {
			return nil, err
		}
		if req.params, ok = v.([]any); !ok {
			req.params, req.object = []any{v}, v
		}
	}
	return req, nil
}

// fromJSON replaces json.Number by int64 or float64.
func fromJSON(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("json: nested too deep")
	}
	var err error
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, nil
		}
		return v.Float64()
	case []any:
		for i := range v {
			if v[i], err = fromJSON(v[i], depth+1); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = fromJSON(v[k], depth+1); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// appendJSON writes a value without spaces.
func appendJSON(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...)
	case string:
		return appendJSONString(b, v)
	case date:
		return appendJSONString(b, string(v))
	case int64:
		return strconv.AppendInt(b, v, 10)
	case int32:
		return strconv.AppendInt(b, int64(v), 10)
	case float64:
		return append(b, floatText(v)...)
	case bool:
		return strconv.AppendBool(b, v)
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, e)
		}
		return append(b, ']')
	case map[string]any:
		b = append(b, '{')
		for i, k := range sortedKeys(v) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendJSONString(b, k), ':')
			b = appendJSON(b, v[k])
		}
		return append(b, '}')
	case ordered:
		b = append(b, '{')
		for i, m := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendJSONString(b, m.key), ':')
			b = appendJSON(b, m.val)
		}
		return append(b, '}')
	case *record:
		b = append(b, '{')
		first := true
		for i, f := range v.class.fields {
			if f.hidden {
				continue
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(appendJSONString(b, f.name), ':')
			b = appendJSON(b, v.vals[i])
		}
		return append(b, '}')
	}
	return append(b, "null"...)
}

func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\t':
			b = append(b, '\\', 't')
		case r == '\r':
			b = append(b, '\\', 'r')
		case r < 0x20 || r == 0x7F:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// jsonAnswer builds the answer in the version of the request.
func jsonAnswer(req *request, result any, e *Error) []byte {
	var b []byte
	switch {
	case req.v2 && e != nil:
		b = append(b, `{"jsonrpc":"2.0","error":`...)
		b = appendJSON(b, ordered{{"code", int64(1)}, {"message", e.Code}, {"data", strs(e.Params...)}})
	case req.v2:
		b = append(b, `{"jsonrpc":"2.0","result":`...)
		b = appendJSON(b, result)
	case e != nil:
		b = append(b, `{"result":null,"error":`...)
		b = appendJSON(b, e.list())
	default:
		b = append(b, `{"result":`...)
		b = appendJSON(b, result)
		b = append(b, `,"error":null`...)
	}
	b = append(b, `,"id":`...)
	b = append(b, req.id...)
	return append(b, '}')
}

// htmlEscape escapes text for the server's error pages.
func htmlEscape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(s)
}
