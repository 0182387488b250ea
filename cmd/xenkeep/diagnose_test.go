package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// diagnosed is a pool and a repository with secrets that can be recognised, and
// everything that the diagnostics of commands wrote.
type diagnosed struct {
	t    *testing.T
	dir  string
	pool *xapisim.Pool
	runs int

	stderr  bytes.Buffer
	outputs map[string][]byte // by file; profiles are unpacked
}

const (
	poolSecret = "pool-secret-4711"
	repoSecret = "repository-secret-4712"
)

func newDiagnosed(t *testing.T) *diagnosed {
	t.Helper()
	d := &diagnosed{t: t, dir: tempDir(t), outputs: map[string][]byte{}}
	data := make([]byte, 6<<20)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(data[:3<<20])
	d.write("disk.raw", data)
	d.write("password", []byte(repoSecret+"\n"))
	d.write("poolpassword", []byte(poolSecret+"\n"))
	d.write("wrong", []byte("wrong-"+poolSecret+"\n"))
	d.write("key", bytes.Repeat([]byte{0xa5, 0x5a, 0x17, 0x71}, 8))
	var err error
	d.pool, err = xapisim.New(xapisim.Config{
		Password: poolSecret, NBD: xapisim.NBDTLS, CBT: true, Scale: 0.01,
		VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{d.path("disk.raw")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.pool.Close() })
	for name, value := range map[string]string{
		"XENKEEP_REPOSITORY": d.path("repo"), "XENKEEP_PASSWORD_FILE": d.path("password"), "XENKEEP_CACHE_DIR": d.path("cache"),
		"XENKEEP_POOL": d.pool.URL(), "XENKEEP_POOL_PASSWORD_FILE": d.path("poolpassword"), "XENKEEP_POOL_FINGERPRINT": d.pool.Fingerprint(),
	} {
		t.Setenv(name, value)
	}
	return d
}

func (d *diagnosed) path(name string) string { return filepath.Join(d.dir, name) }

func (d *diagnosed) write(name string, p []byte) {
	d.t.Helper()
	if err := os.WriteFile(d.path(name), p, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// run runs a command with all diagnostics, and returns its trace.
func (d *diagnosed) run(ctx context.Context, want int, args ...string) []xapi.TraceEvent {
	d.t.Helper()
	d.runs++
	name := func(kind string) string { return d.path(fmt.Sprintf("%s%d", kind, d.runs)) }
	var stderr bytes.Buffer
	all := append(slices.Clone(args), "-v", "--trace-api", name("trace"), "--cpu-profile", name("cpu"), "--mem-profile", name("mem"))
	code := run(ctx, new(diagnostics), all, io.Discard, &stderr)
	d.stderr.Write(stderr.Bytes())
	if code != want {
		d.t.Fatalf("%v: exit code %d, want %d\n%s", args, code, want, stderr.String())
	}
	for _, kind := range []string{"cpu", "mem"} {
		d.outputs[name(kind)] = d.unpack(name(kind))
	}
	text, err := os.ReadFile(name("trace"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.outputs[name("trace")] = text
	var events []xapi.TraceEvent
	for line := range strings.Lines(string(text)) {
		var e xapi.TraceEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			d.t.Fatalf("%v in line %s", err, line)
		}
		events = append(events, e)
	}
	for _, kind := range []string{"cpu", "mem", "trace"} {
		if info, err := os.Stat(name(kind)); err != nil || info.Mode().Perm() != 0o600 {
			d.t.Errorf("%s: %v, %v; want mode 0600", name(kind), info.Mode(), err)
		}
	}
	return events
}

// unpack returns the content of a profile, which must be complete.
func (d *diagnosed) unpack(name string) []byte {
	d.t.Helper()
	f, err := os.Open(name)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		d.t.Fatalf("%s: %v", name, err)
	}
	p, err := io.ReadAll(z)
	if err != nil || len(p) == 0 {
		d.t.Fatalf("%s: %d bytes, %v", name, len(p), err)
	}
	return p
}

// mustHideSecrets searches all outputs.
func (d *diagnosed) mustHideSecrets(more map[string]string) {
	d.t.Helper()
	key, err := os.ReadFile(d.path("key"))
	if err != nil {
		d.t.Fatal(err)
	}
	secrets := map[string]string{
		"the pool's password": poolSecret, "the repository's password": repoSecret,
		"the key": string(key), "the key in hex": hex.EncodeToString(key),
	}
	sessions := d.pool.Sessions()
	if len(sessions) == 0 {
		d.t.Fatal("no session was opened")
	}
	for i, s := range sessions {
		secrets[fmt.Sprintf("session %d", i)] = strings.TrimPrefix(s, "OpaqueRef:")
	}
	for name, s := range more {
		secrets[name] = s
	}
	d.outputs["stderr"] = d.stderr.Bytes()
	for file, p := range d.outputs {
		for name, secret := range secrets {
			if i := bytes.Index(p, []byte(secret)); i >= 0 {
				d.t.Errorf("%s contains %s: ...%q...", filepath.Base(file), name, p[max(0, i-100):min(len(p), i+60)])
			}
		}
	}
}

// The outputs of --verbose, --trace-api and the profiles can be sent to anybody:
// no password, key, session or credential is in them, whatever the commands do
// and however they fail.
func TestDiagnosticsHideSecrets(t *testing.T) {
	d := newDiagnosed(t)
	ctx := t.Context()
	d.run(ctx, exitOK, "init")
	d.run(ctx, exitOK, "doctor")
	d.run(ctx, exitOK, "backup", "web", "-q")
	events := d.run(ctx, exitOK, "backup", "web", "-q")
	events = append(events, d.run(ctx, exitOK, "backup", "web", "--transport", "vhd", "-q")...)
	d.run(ctx, exitOK, "restore", "latest:web", "--vm", "--to-sr", "Local storage", "-q")
	d.run(ctx, exitOK, "check")

	// The pool repeats the password in an error, and refuses a wrong one.
	d.pool.Fault(xapisim.Fault{On: "VM.snapshot", Code: "INTERNAL_ERROR", Params: []string{"login with " + poolSecret + " failed"}})
	d.run(ctx, exitFailed, "backup", "web", "-q", "--json")
	d.run(ctx, exitFailed, "pool", "vms", "--pool-password-file", d.path("wrong"))

	// A password command contains a password.
	t.Setenv("XENKEEP_PASSWORD_FILE", "")
	t.Setenv("XENKEEP_PASSWORD_COMMAND", "echo "+repoSecret)
	d.run(ctx, exitOK, "snapshots")
	t.Setenv("XENKEEP_PASSWORD_COMMAND", "echo wrong-"+repoSecret)
	d.run(ctx, exitWrongSecret, "snapshots")
	t.Setenv("XENKEEP_PASSWORD_COMMAND", "")

	found := map[string]bool{}
	for _, e := range events {
		found[e.Kind] = true
		if e.Time.IsZero() || e.Method == "" || e.Host == "" {
			t.Errorf("incomplete event: %+v", e)
		}
	}
	for _, kind := range []string{xapi.TraceCall, xapi.TraceHTTP, xapi.TraceTransfer, xapi.TraceNBD} {
		if !found[kind] {
			t.Errorf("no event of kind %q", kind)
		}
	}
	for _, want := range []string{"pool: logged in", "repository: opened", "with password file", "reading, vm web, disk xvda, because changes since snapshot", "disk placed, disk xvda, sr Local storage", "ended, exit code 12"} {
		if !strings.Contains(d.stderr.String(), want) {
			t.Errorf("--verbose shows no %q:\n%s", want, d.stderr.String())
		}
	}
	d.mustHideSecrets(nil)
}

// The same with a key file and the credentials of S3.
func TestDiagnosticsHideS3Keys(t *testing.T) {
	d := newDiagnosed(t)
	s3 := s3server.Start(t)
	for _, v := range s3.Environ() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	t.Setenv("XENKEEP_PASSWORD_FILE", "")
	t.Setenv("XENKEEP_KEY_FILE", d.path("key"))
	t.Setenv("XENKEEP_REPOSITORY", s3.Location("here"))
	d.run(t.Context(), exitOK, "init")
	d.run(t.Context(), exitOK, "backup", "web", "-q")
	t.Setenv("XENKEEP_REPOSITORY", s3.Location("nowhere"))
	d.run(t.Context(), exitNoRepository, "snapshots")
	d.mustHideSecrets(map[string]string{"the secret key": s3.SecretKey})
}

// A command that is interrupted leaves complete profiles, and a trace up to the
// end.
func TestDiagnosticsOfInterrupted(t *testing.T) {
	d := newDiagnosed(t)
	d.run(t.Context(), exitOK, "init")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	d.pool.Watch(func(method string) {
		if method == "VM.snapshot" {
			cancel(errInterrupted)
		}
	})
	events := d.run(ctx, exitInterrupted, "backup", "web", "-q")
	if last := events[len(events)-1]; last.Method != "session.logout" {
		t.Errorf("the trace ends with %+v", last)
	}
}

// A file that cannot be written is named before the command begins. A trace
// whose disk is full costs a warning, not the result.
func TestDiagnosticsFiles(t *testing.T) {
	d := newDiagnosed(t)
	for _, flag := range []string{"--trace-api", "--cpu-profile", "--mem-profile"} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), new(diagnostics), []string{"init", flag, d.path("missing/file")}, &stdout, &stderr)
		want := "xenkeep: " + flag + ": open " + d.path("missing/file") + ": no such file or directory\n"
		if code != exitFailed || stderr.String() != want || stdout.Len() > 0 {
			t.Errorf("%s: exit code %d, stderr %q, want %q", flag, code, stderr.String(), want)
		}
	}
	if _, err := os.Stat(d.path("repo")); err == nil {
		t.Error("the command ran")
	}
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("SKIP: no /dev/full")
	}
	var stderr bytes.Buffer
	if code := run(t.Context(), new(diagnostics), []string{"pool", "vms", "--trace-api", "/dev/full"}, io.Discard, &stderr); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if want := "xenkeep: warning: --trace-api /dev/full: write /dev/full: no space left on device\n"; stderr.String() != want {
		t.Errorf("stderr %q, want %q", stderr.String(), want)
	}
}
