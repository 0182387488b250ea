package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
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
