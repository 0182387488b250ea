package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Row N20 of the fault list: notifications can be tried without a backup, each
// with its result, and the exit code reports whether all were sent.
func TestNotifyTest(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, fmt.Sprintf("%s %s %t", r.Method, r.URL.Path, bytes.Contains(body, []byte("TEST")) || bytes.Contains(body, []byte(`"test":true`))))
		if r.URL.Path == "/gone" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "x.toml")
	write := func(notify string) {
		t.Helper()
		text := "[repository]\nlocation='/r'\n[pools.p]\nurl='h'\n[jobs.a]\nselect={all=true}\n[jobs.b]\nselect={all=true}\nnotify={webhook={url='URL/b?secret=1'}}\n" + notify
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "URL", server.URL)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := strings.TrimPrefix(server.URL, "http://")
	for _, c := range []struct {
		notify, args string
		code         int
		out          string
		asked        string
	}{
		{"[notify.ping]\nstart='URL/s'\nsuccess='URL/ok'\nfailure='URL/f'\n", "", exitOK,
			"sent      notify: ping start to HOST\nsent      notify: ping failure to HOST\nsent      notify: ping success to HOST\nsent      job b: webhook to HOST\n",
			"GET /s false,POST /f true,POST /ok true,POST /b true"},
		{"[notify.webhook]\nurl='URL/gone'\n", "--job=a", exitFailed, "NOT SENT  job a: webhook to HOST: webhook to HOST: the answer is 404 Not Found\n", "POST /gone true"},
		{"", "--job=a", exitFailed, "", ""},
		{"", "--job=c", exitFailed, "", ""},
		{"[notify.mail]\nserver='127.0.0.1:1'\ntls='none'\nfrom='a@b'\nto=['c@d']\n", "--job=a --json", exitFailed,
			`{"type":"notification","job":"a","channel":"mail","to":"c@d","sent":false,"error":"mail by 127.0.0.1:1: `, ""},
	} {
		asked = nil
		write(c.notify)
		var out, stderr bytes.Buffer
		code := run(t.Context(), new(diagnostics), append([]string{"notify", "test", "--config", file}, strings.Fields(c.args)...), &out, &stderr)
		want := strings.ReplaceAll(c.out, "HOST", host)
		if code != c.code || !strings.HasPrefix(out.String(), want) || c.code == exitOK && out.String() != want || strings.Contains(out.String(), "secret") {
			t.Errorf("%q %s: code %d\n%s%s\nwant %d\n%s", c.notify, c.args, code, out.String(), stderr.String(), c.code, want)
		}
		if got := strings.Join(asked, ","); got != c.asked {
			t.Errorf("asked for %s, want %s", got, c.asked)
		}
	}
	if code := run(t.Context(), new(diagnostics), []string{"notify", "test"}, io.Discard, io.Discard); code != exitUsage {
		t.Errorf("code %d without a config", code)
	}
}
