package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/rogpeppe/go-internal/testscript"

	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/xapi/xapisim"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"xenkeep": main})
}

// The stories of testdata, one per file: commands of users, and their output.
func TestScripts(t *testing.T) {
	testscript.Run(t, stories(testscript.Params{Dir: "testdata"}, func(e *testscript.Env) {
		e.Setenv("XENKEEP_REPOSITORY", filepath.Join(e.WorkDir, "repo"))
	}))
}

// The stories that do not access the repository's folder directly, on S3.
func TestScriptsS3(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: the same stories again")
	}
	s3 := s3server.Start(t)
	files := []string{"testdata/image.txtar", "testdata/list.txtar", "testdata/pool.txtar"}
	// The server must outlive the stories, which are parallel tests.
	t.Run("stories", func(t *testing.T) {
		testscript.Run(t, stories(testscript.Params{Files: files}, func(e *testscript.Env) {
			e.Vars = append(e.Vars, s3.Environ()...)
			e.Setenv("XENKEEP_REPOSITORY", s3.Location(filepath.Base(e.WorkDir)))
		}))
	})
}

// The stories of a bucket that locks new objects.
func TestScriptsLocked(t *testing.T) {
	s3 := s3server.StartWith(t, s3server.Options{Lock: true})
	t.Run("stories", func(t *testing.T) {
		p := stories(testscript.Params{Dir: "testdata/locked"}, func(e *testscript.Env) {
			e.Vars = append(e.Vars, s3.Environ()...)
			e.Setenv("XENKEEP_REPOSITORY", s3.Location(filepath.Base(e.WorkDir)))
		})
		p.Cmds["vandalise"] = func(ts *testscript.TestScript, _ bool, _ []string) { vandalise(ts, s3) }
		testscript.Run(t, p)
	})
}

// vandalise deletes all that the bucket shows, as anyone with the keys can.
func vandalise(ts *testscript.TestScript, server *s3server.Server) {
	client, err := minio.New(server.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.SecretKey, ""), Region: server.Region,
	})
	ts.Check(err)
	ctx := context.Background()
	for i := range client.ListObjectsIter(ctx, server.Bucket, minio.ListObjectsOptions{Recursive: true}) {
		ts.Check(i.Err)
		ts.Check(client.RemoveObject(ctx, server.Bucket, i.Key, minio.RemoveObjectOptions{}))
	}
}

// The stories of pools, for each version of XenServer.
func TestPoolScripts(t *testing.T) {
	for _, version := range []xapisim.Version{xapisim.Version80, xapisim.Version82, xapisim.VersionCurrent} {
		t.Run(string(version), func(t *testing.T) {
			p := stories(testscript.Params{Dir: "testdata/pool"}, func(e *testscript.Env) {
				e.Setenv("VERSION", string(version))
				e.Setenv("XENKEEP_REPOSITORY", filepath.Join(e.WorkDir, "repo"))
			})
			plain := p.Condition
			p.Condition = func(cond string) (bool, error) {
				if v, ok := strings.CutPrefix(cond, "version:"); ok {
					return v == string(version), nil
				}
				return plain(cond)
			}
			testscript.Run(t, p)
		})
	}
}

func stories(p testscript.Params, where func(*testscript.Env)) testscript.Params {
	p.Setup = func(e *testscript.Env) error {
		where(e)
		e.Setenv("XENKEEP_CACHE_DIR", filepath.Join(e.WorkDir, "cache"))
		// A password takes 0.2 s to try, on purpose; stories about them put
		// this aside.
		e.Setenv("XENKEEP_KEY_FILE", filepath.Join(e.WorkDir, "key"))
		e.Setenv("TZ", "UTC")
		return os.WriteFile(filepath.Join(e.WorkDir, "key"), bytes.Repeat([]byte{7}, 32), 0o600)
	}
	p.Condition = func(cond string) (bool, error) {
		if tool, ok := strings.CutPrefix(cond, "have:"); ok {
			_, err := exec.LookPath(tool)
			return err == nil, nil
		}
		return false, fmt.Errorf("unknown condition %q", cond)
	}
	p.Cmds = map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"exits": cmdExits, "interrupts": cmdInterrupts, "image": cmdImage, "same": cmdSame, "flip": cmdFlip, "await": cmdAwait,
		"lines": cmdLines, "field": cmdField, "pool": cmdPool, "proxy": cmdProxy, "mode": cmdMode, "expand": cmdExpand, "lost": cmdLost, "terminal": cmdTerminal,
	}
	return p
}

// exits CODE COMMAND...: run a command that must end with this exit code.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, want %s", code, want)
	}
}

// interrupts FILE COMMAND...: run a command, send it SIGINT as soon as FILE
// exists, and wait for exit code 130.
func cmdInterrupts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: interrupts FILE COMMAND...")
	}
	cmd := command(ts, args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ts.Check(cmd.Start())
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	deadline := time.After(30 * time.Second)
	sent := false
	for {
		select {
		case <-over:
			ts.Logf("%s", out.Bytes())
			if code := cmd.ProcessState.ExitCode(); !sent || code != exitInterrupted {
				ts.Fatalf("interrupted %v, exit code %d", sent, code)
			}
			return
		case <-deadline:
			_ = cmd.Process.Kill()
			ts.Fatalf("still runs; interrupted %v\n%s", sent, out.Bytes())
		case <-time.After(5 * time.Millisecond):
			if _, err := os.Stat(ts.MkAbs(args[0])); err == nil && !sent {
				sent = true
				ts.Check(cmd.Process.Signal(os.Interrupt))
			}
		}
	}
}

// command is a command in the script's folder and environment.
func command(ts *testscript.TestScript, args ...string) *exec.Cmd {
	path := args[0]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, path)); err == nil {
			path = filepath.Join(dir, path)
			break
		}
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{
		"PATH", "HOME", "TMPDIR", "XENKEEP_CACHE_DIR", "XENKEEP_REPOSITORY", "XENKEEP_KEY_FILE", "XENKEEP_POOL",
		"XENKEEP_POOL_PASSWORD", "XENKEEP_POOL_FINGERPRINT", "XENKEEP_POOL_INSECURE",
	} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	return cmd
}

// image FILE SIZE SEED N [BASE]: a raw image of SIZE MiB with N patches of
// random data, by SEED, written over the content of BASE.
func cmdImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: image FILE MIB SEED N [BASE]")
	}
	var n [3]int
	for i, a := range args[1:4] {
		v, err := strconv.Atoi(a)
		ts.Check(err)
		n[i] = v
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	if len(args) > 4 {
		base, err := os.Open(ts.MkAbs(args[4]))
		ts.Check(err)
		defer base.Close()
		_, err = io.Copy(f, base)
		ts.Check(err)
	}
	total := int64(n[0]) << 20
	ts.Check(f.Truncate(total))
	random := rand.New(rand.NewPCG(uint64(n[1]), 7))
	data := rand.NewChaCha8([32]byte{byte(n[1])})
	p := make([]byte, 64<<10)
	for range n[2] {
		_, _ = data.Read(p)
		_, err := f.WriteAt(p, random.Int64N((total-int64(len(p)))/4096)*4096)
		ts.Check(err)
	}
}

// same A B: two files are equal, byte for byte.
func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: same A B")
	}
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("%s and %s: equal %v (%d and %d bytes)", args[0], args[1], !neg, len(a), len(b))
	}
}

// flip PATTERN: a byte in the middle of the largest file that fits changes.
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip PATTERN")
	}
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	var name string
	var most []byte
	for _, f := range files {
		p, err := os.ReadFile(f)
		ts.Check(err)
		if len(p) > len(most) {
			name, most = f, p
		}
	}
	if name == "" {
		ts.Fatalf("no file is called %s", args[0])
	}
	most[len(most)/2] ^= 0x10
	ts.Check(os.Chmod(name, 0o600))
	ts.Check(os.WriteFile(name, most, 0o600))
}

// await FILE: until FILE is there.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("no %s", args[0])
		}
	}
}

// expand FILE: variables of the story in a file are replaced by their values.
func cmdExpand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: expand FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), func(name string) string {
		if name == "$" {
			return "$"
		}
		return ts.Getenv(name)
	})), 0o600))
}

// mode FILE OCTAL: a file has these permissions.
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode FILE OCTAL")
	}
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[1] {
		ts.Fatalf("%s has mode %s", args[0], got)
	}
}

// lines TYPE...: stdout is JSON, one object a line, of these types in this
// order; "TYPE*" stands for any number of that type.
func cmdLines(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: lines TYPE...")
	}
	rest := args
	for i, v := range jsonLines(ts) {
		kind, _ := v["type"].(string)
		for len(rest) > 0 && strings.HasSuffix(rest[0], "*") && rest[0] != kind+"*" {
			rest = rest[1:]
		}
		if len(rest) == 0 || strings.TrimSuffix(rest[0], "*") != kind {
			ts.Fatalf("line %d is of type %q, want %v", i+1, kind, rest)
		}
		if !strings.HasSuffix(rest[0], "*") {
			rest = rest[1:]
		}
	}
	if len(rest) > 0 && !strings.HasSuffix(rest[0], "*") {
		ts.Fatalf("no line of type %v", rest)
	}
}

// lost FILE NAME: the id of the bad_snapshot in a file of JSON lines is stored in
// the variable NAME.
func cmdLost(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: lost FILE NAME")
	}
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var v struct{ Type, Object string }
		if json.Unmarshal([]byte(line), &v) == nil && v.Type == "bad_snapshot" {
			ts.Setenv(args[1], strings.TrimPrefix(v.Object, "snapshots/"))
			return
		}
	}
	ts.Fatalf("no bad snapshot in %s", args[0])
}

func jsonLines(ts *testscript.TestScript) []map[string]any {
	var all []map[string]any
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			ts.Fatalf("not JSON: %s: %v", line, err)
		}
		all = append(all, v)
	}
	return all
}

// field PATH [is VALUE | NAME]: the value at PATH ("snapshots.0.id") of the
// last line of stdout is VALUE, or is stored in the variable NAME.
func cmdField(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: field PATH is VALUE | field PATH NAME")
	}
	all := jsonLines(ts)
	if len(all) == 0 {
		ts.Fatalf("no line")
	}
	var v any = all[len(all)-1]
	for step := range strings.SplitSeq(args[0], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(at) {
				ts.Fatalf("%s: no element %s", args[0], step)
			}
			v = at[i]
		}
	}
	text := fmt.Sprint(v)
	if n, ok := v.(float64); ok {
		text = strconv.FormatFloat(n, 'f', -1, 64)
	}
	switch {
	case len(args) == 2:
		ts.Setenv(args[1], text)
	case args[1] == "is" && text != args[2]:
		ts.Fatalf("%s is %q, want %q", args[0], text, args[2])
	}
}

// pool [FLAG...] NAME=DISK...: a simulated pool, until the story ends. Sets the
// variables that lead to it, VDI_NAME_DEVICE for each disk, UUID_NAME for each
// VM, and SR_TYPE.
func cmdPool(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: pool [FLAG...] NAME=DISK...")
	}
	line := []string{"xenkeep", "sim", "--state", ts.MkAbs("pool")}
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			line = append(line, "--vm")
		}
		line = append(line, a)
	}
	cmd := command(ts, line...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			ts.Logf("sim: %v\n%s", err, stderr.Bytes())
		}
	})
	first, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		ts.Fatalf("sim: no line: %v\n%s", err, stderr.Bytes())
	}
	var ready xapisim.Ready
	ts.Check(json.Unmarshal(first, &ready))
	ts.Setenv("XENKEEP_POOL", ready.URL)
	ts.Setenv("XENKEEP_POOL_USER", ready.User)
	ts.Setenv("XENKEEP_POOL_PASSWORD", ready.Password)
	ts.Setenv("XENKEEP_POOL_FINGERPRINT", ready.Fingerprint)
	ts.Setenv("XENKEEP_POOL_INSECURE", strconv.FormatBool(strings.HasPrefix(ready.URL, "http:")))
	for _, vm := range ready.VMs {
		ts.Setenv("UUID_"+vm.Name, vm.UUID)
		for _, d := range vm.Disks {
			ts.Setenv("VDI_"+vm.Name+"_"+d.Device, d.VDI)
		}
	}
	for _, sr := range ready.SRs {
		ts.Setenv("SR_"+sr.Type, sr.UUID)
	}
}

// proxy FILE BYTES: XENKEEP_POOL is the address of a proxy that creates FILE and
// stalls each connection that has received more than BYTES; with up, it discards
// the bytes that are sent beyond that.
func cmdProxy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 || len(args) == 3 && args[2] != "up" {
		ts.Fatalf("usage: proxy FILE BYTES [up]")
	}
	limit, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	u, err := url.Parse(ts.Getenv("XENKEEP_POOL"))
	ts.Check(err)
	l, err := net.Listen("tcp", u.Hostname()+":0")
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	var over sync.WaitGroup
	ts.Defer(func() {
		cancel()
		_ = l.Close()
		over.Wait()
	})
	file, target := ts.MkAbs(args[0]), u.Host
	up := len(args) == 3
	over.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			over.Go(func() { carry(ctx, in, target, limit, file, up) })
		}
	})
	u.Host = l.Addr().String()
	ts.Setenv("XENKEEP_POOL", u.String())
}

func carry(ctx context.Context, in net.Conn, to string, limit int64, file string, up bool) {
	defer in.Close()
	out, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
	defer stop()
	back := make(chan error, 1)
	go func() {
		if up {
			if n, _ := io.CopyN(out, in, limit); n == limit {
				_ = os.WriteFile(file, nil, 0o600)
				_, _ = io.Copy(io.Discard, in)
			}
		}
		_, err := io.Copy(out, in)
		_ = out.Close()
		back <- err
	}()
	if up {
		_, _ = io.Copy(in, out)
		return
	}
	if n, _ := io.CopyN(in, out, limit); n == limit {
		_ = os.WriteFile(file, nil, 0o600)
		<-back // until the other side has had enough
	}
}
