package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/xapi/xapisim"
)

// startSim runs the command until the test ends and returns its line.
func startSim(t *testing.T, args ...string) (ready xapisim.Ready) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	cmd := newSimCommand()
	cmd.SetArgs(args)
	cmd.SetOut(w)
	cmd.SetErr(io.Discard)
	done := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		w.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("sim ended with %v", err)
		}
	})
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if err != nil {
		t.Fatalf("no line: %v", err)
	}
	if err := json.Unmarshal(line, &ready); err != nil {
		t.Fatalf("line %s: %v", line, err)
	}
	return ready
}

func simWrite(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newSimCommand()
	cmd.SetArgs(append([]string{"write"}, args...))
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestSim(t *testing.T) {
	dir := t.TempDir()
	disk := bytes.Repeat([]byte("disk"), 1<<20)
	day1, day2 := filepath.Join(dir, "day1"), filepath.Join(dir, "day2")
	if err := os.WriteFile(day1, disk, 0o400); err != nil {
		t.Fatal(err)
	}
	disk[12345] ^= 1
	if err := os.WriteFile(day2, disk, 0o400); err != nil {
		t.Fatal(err)
	}
	for _, tls := range []bool{true, false} {
		args := []string{"--state", filepath.Join(dir, "state"), "--vm", "web=" + day1 + "," + day2, "--vm", "db=" + day2, "--sr-type", "lvmohba"}
		if !tls {
			args = append(args, "--no-tls", "--running=false", "--hosts", "1", "--cbt", "--nbd", "plain")
		}
		ready := startSim(t, args...)
		if strings.HasPrefix(ready.URL, "https://") != tls || ready.User == "" || ready.Password == "" || tls && ready.Fingerprint == "" {
			t.Errorf("line %+v", ready)
		}
		if len(ready.VMs) != 2 || ready.VMs[0].Name != "web" || len(ready.VMs[0].Disks) != 2 || ready.VMs[1].Disks[0].Size != 4<<20 || ready.VMs[0].Disks[0].Device != "xvda" {
			t.Fatalf("VMs %+v", ready.VMs)
		}
		if want := map[bool]int{true: 0, false: 1}[tls]; len(ready.NBD) != want || want > 0 && ready.NBD[0].Port == 0 {
			t.Errorf("NBD %+v", ready.NBD)
		}
		types := map[string]bool{}
		for _, s := range ready.SRs {
			types[s.Type] = s.UUID != "" && s.Name != ""
		}
		if !types["lvmohba"] || !types["ext"] {
			t.Errorf("SRs %+v", ready.SRs)
		}
		write := func(vdi, image string) (string, error) {
			return simWrite(t, "--url", ready.URL, "--vdi", vdi, "--image", image)
		}
		for _, want := range []string{`{"bytes_written":4096}`, `{"bytes_written":0}`} {
			if got, err := write(ready.VMs[0].Disks[0].VDI, day2); err != nil || strings.TrimSpace(got) != want {
				t.Errorf("write: %q, %v, want %s", got, err, want)
			}
		}
		if _, err := write("no-such-uuid", day2); err == nil || !strings.Contains(err.Error(), "UUID_INVALID") {
			t.Errorf("write to an unknown disk: %v", err)
		}
		if _, err := write(ready.VMs[0].Disks[0].VDI, filepath.Join(dir, "missing")); err == nil {
			t.Error("a missing image was written")
		}
	}
	if b, err := os.ReadFile(day1); err != nil || b[12345] == disk[12345] {
		t.Errorf("the pool wrote to a disk's file: %v", err)
	}
}

func TestSimUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--vm", "name"},
		{"--vm", "=disk"},
		{"--vm", "vm=/no/such/disk"},
		{"--sr-type", "floppy"},
		{"--hosts", "0"},
		{"--listen", "nowhere"},
		{"--nbd", "maybe"},
		{"--version", "5"},
		{"--guest", "web"},
		{"--guest", "web=boots,soon"},
		{"--guest", "web=dances"},
		{"fault", "--url", "http://127.0.0.1:1"},
		{"fault", "--url", "http://127.0.0.1:1", "--on", "VM.snapshot"},
		{"fault", "--url", "http://127.0.0.1:1", "--on", "VM.snapshot", "--do", "gc"},
		{"fault", "--url", "http://127.0.0.1:1", "--do", "nothing"},
		{"surplus"},
	} {
		cmd := newSimCommand()
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
	if _, err := simWrite(t, "--url", "http://127.0.0.1:1"); err == nil {
		t.Error("write without a disk: no error")
	}
}

// TestSimFault scripts a mishap and lets others happen, from outside.
func TestSimFault(t *testing.T) {
	ready := startSim(t, "--no-tls", "--hosts", "2")
	fault := func(args ...string) {
		t.Helper()
		cmd := newSimCommand()
		cmd.SetArgs(append([]string{"fault", "--url", ready.URL}, args...))
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatalf("fault %v: %v", args, err)
		}
	}
	session := ""
	call := func(method string, params ...string) string {
		t.Helper()
		req, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Post(ready.URL+"/jsonrpc", "application/json", bytes.NewReader(req))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var out struct {
			Result any
			Error  struct {
				Message string
				Data    []string
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		if out.Error.Message != "" {
			return strings.Join(append([]string{out.Error.Message}, out.Error.Data...), " ")
		}
		s, _ := out.Result.(string)
		return s
	}
	login := func() { session = call("session.login_with_password", ready.User, ready.Password) }
	login()
	fault("--on", "VM.get_all", "--nth", "2", "--code", "SOME_CODE", "--param", "a", "--param", "b")
	for _, want := range []string{"", "SOME_CODE a b", ""} {
		if got := call("VM.get_all", session); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	fault("--on", "VM.get_all", "--code", "SOME_CODE", "--times", "-1")
	fault("--do", "clear")
	for _, action := range [][]string{{"--do", "restart"}, {"--do", "crash"}, {"--do", "drop-sessions"}} {
		if got := call("VM.get_all", session); got != "" {
			t.Errorf("before %v: %q", action, got)
		}
		fault(action...)
		http.DefaultClient.CloseIdleConnections()
		if got := call("VM.get_all", session); got != "SESSION_INVALID "+session {
			t.Errorf("after %v: %q", action, got)
		}
		login()
	}
	fault("--do", "crash", "--host", "1")
	fault("--do", "gc")
	fault("--do", "expire-tasks")
	if got := call("VM.get_all", session); got != "" {
		t.Errorf("after a member's crash: %q", got)
	}
	cmd := newSimCommand()
	cmd.SetArgs([]string{"fault", "--url", ready.URL, "--do", "crash", "--host", "7"})
	cmd.SetErr(io.Discard)
	cmd.SetOut(io.Discard)
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "host 7") {
		t.Errorf("crash of host 7: %v", err)
	}
}
