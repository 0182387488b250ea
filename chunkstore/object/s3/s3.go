// Package s3 keeps objects in a bucket of Amazon S3 or of a server that speaks
// its protocol: one request for each call, one part for each object.
//
// Credentials are found as minio-go finds them: AWS_ACCESS_KEY_ID and
// AWS_SECRET_ACCESS_KEY (or MINIO_ROOT_USER and so on), the shared credentials
// file, and then the roles of EC2, ECS and EKS.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"xenkeep/chunkstore/object"
)

const (
	// idleTimeout ends a connection over which nothing has moved for so long;
	// without it a server that falls silent would hold a run for ever.
	idleTimeout = 2 * time.Minute

	wireBuffer = 256 << 10

	// trusted is how much memory a server's Content-Length may claim at once.
	trusted = 64 << 20
)

// Config says which bucket, and how it is reached.
type Config struct {
	Endpoint string // host or host:port
	TLS      bool
	Bucket   string
	Prefix   string // of all keys, without slashes at its ends; may be empty
	Region   string // empty: AWS_REGION, AWS_DEFAULT_REGION, else the server is asked

	// AccessKey and SecretKey are used where they are set; else see the package
	// comment.
	AccessKey, SecretKey string
}

// Parse reads a location of the form s3:http(s)://host[:port]/bucket[/prefix].
func Parse(location string) (Config, error) {
	rest, ok := strings.CutPrefix(location, "s3:")
	if !ok {
		return Config{}, badLocation("does not begin with s3:")
	}
	u, err := url.Parse(rest)
	if err != nil {
		return Config{}, badLocation("not a URL") // err would repeat a password in it
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Config{}, badLocation("credentials and parameters do not belong there")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return Config{}, badLocation("want s3:https://host/bucket/prefix")
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if bucket == "" {
		return Config{}, badLocation("no bucket; want s3:https://host/bucket/prefix")
	}
	return Config{
		Endpoint: u.Host, TLS: u.Scheme == "https",
		Bucket: bucket, Prefix: strings.Trim(prefix, "/"),
	}, nil
}

func badLocation(why string) error {
	return &object.Error{Op: "open", Name: "s3 location", Class: object.ErrName, Cause: errors.New(why)}
}

// Location is the form that Parse reads.
func (c Config) Location() string {
	scheme := "http"
	if c.TLS {
		scheme = "https"
	}
	s := "s3:" + scheme + "://" + c.Endpoint + "/" + c.Bucket
	if c.Prefix != "" {
		s += "/" + c.Prefix
	}
	return s
}

// Store is a prefix of a bucket.
type Store struct {
	client   minio.Core
	bucket   string
	root     string // before each name: "" or ending in a slash
	location string
	idle     func()
}

var _ object.Store = (*Store)(nil)

// Open gives the repository's storage. A missing bucket, and one without any
// object below the prefix, is object.ErrNoRepository.
func Open(ctx context.Context, c Config) (*Store, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	empty, err := s.empty(ctx, "open")
	if err == nil && empty {
		err = &object.Error{Op: "open", Name: s.location, Class: object.ErrNoRepository, Cause: errors.New("no object there")}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Create gives the storage for a new repository in a bucket that exists. Where
// the prefix holds an object already, it is object.ErrExists.
func Create(ctx context.Context, c Config) (*Store, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	empty, err := s.empty(ctx, "create")
	if err == nil && !empty {
		err = &object.Error{Op: "create", Name: s.location, Class: object.ErrExists}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// connect makes the client; it sends nothing yet.
func connect(c Config) (*Store, error) {
	fail := func(err error) (*Store, error) {
		return nil, &object.Error{Op: "open", Name: c.Location(), Class: err}
	}
	transport, err := minio.DefaultTransport(c.TLS)
	if err != nil {
		return fail(err)
	}
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &idleConn{Conn: conn}, nil
	}
	transport.WriteBufferSize, transport.ReadBufferSize = wireBuffer, wireBuffer

	region := c.Region
	for _, variable := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if region == "" {
			region = os.Getenv(variable)
		}
	}
	// One attempt: trying again is package retry's. Where minio-go has to find
	// the region it needs a second one to use it.
	attempts := 1
	if region == "" {
		attempts = 2
	}
	client, err := minio.NewCore(c.Endpoint, &minio.Options{
		Creds: creds(c), Secure: c.TLS, Region: region,
		Transport: transport, MaxRetries: attempts,
	})
	if err != nil {
		return fail(err)
	}
	s := &Store{client: *client, bucket: c.Bucket, location: c.Location(), idle: transport.CloseIdleConnections}
	if c.Prefix != "" {
		s.root = c.Prefix + "/"
	}
	return s, nil
}

func creds(c Config) *credentials.Credentials {
	if c.AccessKey != "" {
		return credentials.NewStaticV4(c.AccessKey, c.SecretKey, "")
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{},
		&credentials.EnvMinio{},
		&credentials.FileAWSCredentials{},
		// Outside of Amazon nobody answers at the address asked here.
		&credentials.IAM{Client: &http.Client{Timeout: 10 * time.Second}},
	})
}

// idleConn is a connection that fails when nothing moves for idleTimeout.
type idleConn struct{ net.Conn }

func (c *idleConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *idleConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// empty tells whether no object lies below the prefix.
func (s *Store) empty(ctx context.Context, op string) (bool, error) {
	for i := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.root, Recursive: true, MaxKeys: 1}) {
		if i.Err != nil {
			return false, s.fail(ctx, op, s.location, i.Err)
		}
		return false, nil
	}
	if err := ctx.Err(); err != nil {
		return false, s.fail(ctx, op, s.location, err)
	}
	return true, nil
}

// Put implements object.Store. The request is signed over the SHA-256 of data,
// which every server checks.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	_, err := s.client.PutObject(ctx, s.bucket, s.root+name, object.ThrottledReader(ctx, bytes.NewReader(data)), int64(len(data)),
		"", hex.EncodeToString(sum[:]), minio.PutObjectOptions{
			ContentType:          "application/octet-stream",
			DisableContentSha256: true, // the sum above takes its place
			DisableMultipart:     true,
		})
	if err != nil {
		return s.fail(ctx, "put", name, err)
	}
	return nil
}

// Get implements object.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	if err := check(ctx, "get", name); err != nil {
		return nil, err
	}
	if err := object.CheckRange("get", name, offset, length); err != nil {
		return nil, err
	}
	if length == 0 {
		return []byte{}, s.GetInto(ctx, name, offset, nil)
	}
	body, n, err := s.request(ctx, name, offset, length)
	var beyond rangeError
	if length < 0 && errors.As(err, &beyond) {
		// Reading to the end from the end itself is no error to us.
		info, err := s.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		if _, n, err := object.Span("get", name, info.Size, offset, length); err != nil {
			return nil, err
		} else if n == 0 {
			return []byte{}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if n > trusted && length < 0 {
		p, err := io.ReadAll(io.LimitReader(body, n))
		if err == nil && int64(len(p)) < n {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, s.broken(ctx, name, err)
		}
		return p, nil
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(body, p); err != nil {
		return nil, s.broken(ctx, name, err)
	}
	return p, nil
}

// GetInto implements object.Store.
func (s *Store) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	if err := check(ctx, "get", name); err != nil {
		return err
	}
	if err := object.CheckRange("get", name, offset, int64(len(p))); err != nil {
		return err
	}
	if len(p) == 0 { // a range that HTTP has no words for
		info, err := s.Stat(ctx, name)
		if err == nil {
			_, _, err = object.Span("get", name, info.Size, offset, 0)
		}
		return err
	}
	body, _, err := s.request(ctx, name, offset, int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, p); err != nil {
		return s.broken(ctx, name, err)
	}
	return nil
}

// rangeError is the answer to a range that begins at or behind the end.
type rangeError struct{ err error }

func (e rangeError) Error() string { return e.err.Error() }
func (e rangeError) Unwrap() error { return e.err }

// request asks for a range, of a length other than 0, and gives a body of n
// bytes. The error for a range behind the object's end is a rangeError.
func (s *Store) request(ctx context.Context, name string, offset, length int64) (body io.ReadCloser, n int64, err error) {
	var opts minio.GetObjectOptions
	switch {
	case offset < 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d", offset))
	case length < 0 && offset > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	case length > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	}
	body, info, header, err := s.client.GetObject(ctx, s.bucket, s.root+name, opts)
	if err != nil {
		err := s.fail(ctx, "get", name, err)
		if errors.Is(err, object.ErrShort) {
			return nil, 0, rangeError{err}
		}
		return nil, 0, err
	}
	switch {
	case info.Size < 0:
		err = &object.Error{Op: "get", Name: name, Class: object.ErrUnavailable, Cause: errors.New("answer without length")}
	case header.Get("Content-Range") == "" && (offset > 0 || (offset < 0 && info.Size > -offset)):
		err = &object.Error{Op: "get", Name: name, Class: errors.New("server ignores ranges")}
	case length > 0 && info.Size < length:
		err = &object.Error{Op: "get", Name: name, Class: object.ErrShort}
	}
	if err != nil {
		body.Close()
		return nil, 0, err
	}
	return body, info.Size, nil
}

// broken is the error of a body that ended or failed before its length.
func (s *Store) broken(ctx context.Context, name string, err error) error {
	class := object.ErrUnavailable
	if ctx.Err() != nil {
		class = ctx.Err()
	}
	return &object.Error{Op: "get", Name: name, Class: class, Cause: err}
}

// Stat implements object.Store.
func (s *Store) Stat(ctx context.Context, name string) (object.Info, error) {
	if err := check(ctx, "stat", name); err != nil {
		return object.Info{}, err
	}
	i, err := s.client.StatObject(ctx, s.bucket, s.root+name, minio.StatObjectOptions{})
	if err != nil {
		return object.Info{}, s.fail(ctx, "stat", name, err)
	}
	return object.Info{Name: name, Size: i.Size, Modified: i.LastModified}, nil
}

// List implements object.Store. Keys that are no object names, which others may
// have put into the bucket, are passed over.
func (s *Store) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	if err := object.CheckPrefix("list", prefix); err != nil {
		return err
	}
	noOwner := false
	opts := minio.ListObjectsOptions{Prefix: s.root + prefix, Recursive: true, FetchOwner: &noOwner}
	for i := range s.client.ListObjectsIter(ctx, s.bucket, opts) {
		if i.Err != nil {
			return s.fail(ctx, "list", prefix, i.Err)
		}
		name, ok := strings.CutPrefix(i.Key, s.root)
		if !ok || object.CheckName("list", name) != nil {
			continue
		}
		if err := fn(object.Info{Name: name, Size: i.Size, Modified: i.LastModified}); err != nil {
			return err
		}
	}
	// The iterator ends without a word when ctx does.
	if err := ctx.Err(); err != nil {
		return s.fail(ctx, "list", prefix, err)
	}
	return nil
}

// Delete implements object.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, "delete", name); err != nil {
		return err
	}
	err := s.client.RemoveObject(ctx, s.bucket, s.root+name, minio.RemoveObjectOptions{})
	if err != nil {
		err = s.fail(ctx, "delete", name, err)
		if errors.Is(err, object.ErrNotFound) {
			return nil
		}
	}
	return err
}

// Traits implements object.Store. Amazon S3's listings show an object as soon
// as its PUT has returned (Amazon S3 User Guide, "data consistency model").
func (s *Store) Traits() object.Traits { return object.Traits{Parallel: 8} }

// Location implements object.Store.
func (s *Store) Location() string { return s.location }

// Close implements object.Store.
func (s *Store) Close() error {
	s.idle()
	return nil
}

func check(ctx context.Context, op, name string) error {
	if err := ctx.Err(); err != nil {
		return &object.Error{Op: op, Name: name, Class: err}
	}
	return object.CheckName(op, name)
}
