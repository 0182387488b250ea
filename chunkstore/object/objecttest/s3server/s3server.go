// Package s3server runs a real S3 server for tests: versitygw, on a loopback
// port, over a folder.
package s3server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const program = "versitygw"

// Server is a running server with one empty bucket.
type Server struct {
	Endpoint             string // host:port, without TLS
	Bucket               string
	AccessKey, SecretKey string
	Region               string
	Folder               string // of the bucket's objects
}

// Location returns the repository location of a prefix in the bucket.
func (s *Server) Location(prefix string) string {
	return fmt.Sprintf("s3:http://%s/%s/%s", s.Endpoint, s.Bucket, prefix)
}

// Environ returns the environment variables that a process needs to use the
// server.
func (s *Server) Environ() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_REGION=" + s.Region,
	}
}

// Options configure a server.
type Options struct {
	// Lock makes the bucket keep versions of objects and lock them.
	Lock bool
	// VirtualDomain makes the server also accept the bucket's name as part of
	// the host.
	VirtualDomain string
}

// Start starts a server that stops with the test. If versitygw is neither in
// PATH nor in the module's bin folder, the test is skipped; in CI it fails.
func Start(t testing.TB) *Server { return StartWith(t, Options{}) }

// StartWith is Start with options. A bucket with locks requires extended
// attributes; if the file system has none, the test is skipped.
func StartWith(t testing.TB, o Options) *Server {
	t.Helper()
	path, err := find()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("SKIP:", err)
	}
	dir := t.TempDir()
	s := &Server{Bucket: "xenkeep-test", AccessKey: "test-access", SecretKey: "test-secret-key", Region: "us-east-1"}
	s.Folder = filepath.Join(dir, s.Bucket)
	if o.Lock && !hasAttributes(dir) {
		t.Skip("SKIP: no extended attributes here")
	}
	if !o.Lock {
		if err := os.Mkdir(s.Folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Another process may take a free port between the search for it and its
	// use.
	for attempt := 0; ; attempt++ {
		err := s.start(t, path, dir, o)
		if err == nil {
			if o.Lock {
				s.makeLocked(t)
			}
			return s
		}
		if attempt == 3 {
			t.Fatal(err)
		}
	}
}

// makeLocked creates the bucket, with locks.
func (s *Server) makeLocked(t testing.TB) {
	client, err := minio.New(s.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: s.Region})
	if err == nil {
		err = client.MakeBucket(t.Context(), s.Bucket, minio.MakeBucketOptions{Region: s.Region, ObjectLocking: true})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Server) start(t testing.TB, path, dir string, o Options) error {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Endpoint = free.Addr().String()
	if err := free.Close(); err != nil {
		return err
	}
	args := []string{"--port", s.Endpoint, "--access", s.AccessKey, "--secret", s.SecretKey,
		"--region", s.Region, "--quiet", "--keep-alive"}
	if o.VirtualDomain != "" {
		args = append(args, "--virtual-domain", o.VirtualDomain)
	}
	args = append(args, "posix")
	switch {
	case o.Lock:
		old := t.TempDir()
		args = append(args, "--versioning-dir", old)
	case !hasAttributes(dir):
		args = append(args, "--nometa")
	}
	cmd := exec.Command(path, append(args, dir)...)
	cmd.Env = []string{"HOME=" + dir, "TMPDIR=" + dir}
	var output lockedBuffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := sync.OnceFunc(func() {
		// Kill this process only: others of the same name are not ours.
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Log(err)
		}
		<-ended
	})
	if err := s.answers(ended); err != nil {
		return fmt.Errorf("%s: %w\n%s", program, err, output.String())
	}
	t.Cleanup(stop)
	return nil
}

// answers waits until the server answers.
func (s *Server) answers(ended chan error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Endpoint+"/", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			return resp.Body.Close()
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// find searches PATH, and the bin folder next to go.mod.
func find() (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return exec.LookPath(filepath.Join(dir, "bin", program))
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("%s not found", program)
		}
		dir = parent
	}
}

// lockedBuffer collects the output of a process while it is read.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
