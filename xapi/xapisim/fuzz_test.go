package xapisim

import (
	"bufio"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"strings"
	"testing"
)

func FuzzXMLRPC(f *testing.F) {
	f.Add([]byte(`<?xml version="1.0"?><methodCall><methodName>a.b</methodName><params><param><value><struct><member><name>k</name><value><array><data><value><int>5</int></value><value><nil/></value></data></array></value></member></struct></value></param></params></methodCall>`))
	f.Add([]byte(`<methodCall><methodName>x</methodName></methodCall>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := parseXMLRPC(b)
		if err != nil {
			return
		}
		// A parsed request can be written and parsed again.
		for _, v := range req.params {
			if v == nil {
				continue
			}
			out := appendXML([]byte(`<methodCall><methodName>x</methodName><params><param>`), v)
			out = append(out, `</param></params></methodCall>`...)
			if _, err := parseXMLRPC(out); err != nil {
				if _, ok := err.(*xml.SyntaxError); ok && !storable(fmt.Sprint(v)) {
					continue
				}
				t.Errorf("written anew: %v: %q", err, out)
			}
		}
	})
}

func FuzzJSONRPC(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","method":"a.b","params":["x",{"k":[1,2.5,null,true]}],"id":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := parseJSONRPC(b)
		if err != nil {
			return
		}
		if out := jsonAnswer(req, req.params, nil); !json.Valid(out) {
			t.Errorf("not JSON: %q", out)
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add("GET /export_raw_vdi?a=b HTTP/1.1\r\nCookie: session_id=x; task_id=y\r\nContent-Length: 5\r\n\r\n")
	f.Add("\r\n\r\nPUT / HTTP/1.0\n\n")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := readHead(bufio.NewReader(strings.NewReader(s)), true)
		if err != nil {
			return
		}
		if r.method == "" || r.contentLength < -1 || len(s) > 0 && len(r.path) > maxHead {
			t.Errorf("%q: %+v", s, r)
		}
		r.param("vdi")
		r.basicAuth()
	})
}

func FuzzFilter(f *testing.F) {
	f.Add(`field "is_a_snapshot" = "true" and not (field "name__label" = "x")`)
	s, err := loadSchema()
	if err != nil {
		f.Fatal(err)
	}
	db := newDatabase(s)
	vm := db.create("VM", nil)
	f.Fuzz(func(t *testing.T, expr string) {
		if match, err := parseFilter(expr); err == nil {
			match(vm)
		}
	})
}

// FuzzOVA parses descriptions of archives, and imports those that the parser
// accepts.
func FuzzOVA(f *testing.F) {
	f.Add([]byte(`<value><struct><member><name>version</name><value><struct/></value></member><member><name>objects</name><value><array><data/></array></value></member></struct></value>`))
	f.Add([]byte(`<value><struct><member><name>version</name><value><struct><member><name>xapi_major</name><value>1</value></member></struct></value></member>` +
		`<member><name>objects</name><value><array><data><value><struct><member><name>class</name><value>VM</value></member><member><name>id</name><value>Ref:1</value></member>` +
		`<member><name>snapshot</name><value><struct><member><name>name_label</name><value>x</value></member></struct></value></member></struct></value></data></array></value></member></struct></value>`))
	p, err := New(Config{State: f.TempDir(), Hosts: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Close() })
	f.Fuzz(func(t *testing.T, text []byte) {
		im := &importer{p: p, task: nullRef, sr: nil, restore: len(text)%2 == 0}
		if im.open(text) != nil {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = im.run()
		im.undo()
	})
}
