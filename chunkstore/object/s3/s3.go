// Package s3 stores objects in a bucket of Amazon S3 or of a server with the
// same protocol. Each call is one request, and each object is one part.
//
// Credentials are found as minio-go finds them: AWS_ACCESS_KEY_ID and
// AWS_SECRET_ACCESS_KEY (or MINIO_ROOT_USER and so on), the shared credentials
// file, and then the roles of EC2, ECS and EKS.
package s3

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"

	"xenkeep/chunkstore/object"
)

const (
	// idleTimeout is the time without any traffic after which a connection is
	// closed. Without it, a server that stops answering would block a run for
	// ever.
	idleTimeout = 2 * time.Minute

	wireBuffer = 256 << 10

	// maxAnswer bounds answers that are not an object's content. The longest of
	// them is a page of 1000 keys.
	maxAnswer = 16 << 20

	defaultParallel = 8

	day = 24 * time.Hour
)

// Store is a prefix of a bucket.
type Store struct {
	client   minio.Core
	c        Config
	bucket   string
	root     string // precedes each name: "" or ending in a slash
	location string
	idle     func()
	clock    *clockTransport
	parallel int
	slots    chan struct{} // one for each request in progress
	keep     atomic.Int64  // days for which a new object is locked
}

var _ object.Versioned = (*Store)(nil)

// Open returns the storage of a repository. If the bucket is missing, or has no
// object below the prefix, the error is object.ErrNoRepository; deleted objects
// that are kept as versions count.
func Open(ctx context.Context, c Config) (*Store, error) {
	s, err := Connect(c)
	if err != nil {
		return nil, err
	}
	empty, err := s.empty(ctx, "open", false)
	if err == nil && empty {
		// If versions cannot be listed, they are treated as absent.
		if hidden, verr := s.empty(ctx, "open", true); verr == nil && !hidden {
			return s, nil
		}
		err = &object.Error{Op: "open", Name: s.location, Class: object.ErrNoRepository, Cause: errors.New("no object there")}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Create returns the storage for a new repository in an existing bucket. If
// there is an object below the prefix already, the error is object.ErrExists.
func Create(ctx context.Context, c Config) (*Store, error) {
	s, err := Connect(c)
	if err != nil {
		return nil, err
	}
	empty, err := s.empty(ctx, "create", false)
	if err == nil && !empty {
		err = &object.Error{Op: "create", Name: s.location, Class: object.ErrExists}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Connect returns the storage, whatever it contains. It does not send a
// request.
func Connect(c Config) (*Store, error) {
	fail := func(err error) (*Store, error) {
		return nil, &object.Error{Op: "open", Name: c.Location(), Class: err}
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	transport, err := minio.DefaultTransport(c.TLS)
	if err != nil {
		return fail(err)
	}
	roots, err := c.roots()
	if err != nil {
		return fail(err)
	}
	if roots != nil {
		transport.TLSClientConfig.RootCAs = roots
	}
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	transport.DialContext = func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		if c.dial != nil {
			conn, err = (*c.dial)(network, addr)
		} else {
			conn, err = dialer.DialContext(ctx, network, addr)
		}
		if err != nil {
			return nil, err
		}
		return &idleConn{Conn: conn}, nil
	}
	transport.WriteBufferSize, transport.ReadBufferSize = wireBuffer, wireBuffer

	region := cmp.Or(c.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
	// Only one attempt, because package retry does the retries. If minio-go
	// must find the region, it needs a second attempt to use it.
	attempts := 1
	if region == "" {
		attempts = 2
	}
	clock := &clockTransport{inner: transport}
	client, err := minio.NewCore(c.Endpoint, &minio.Options{
		Creds: creds(&c), Secure: c.TLS, Region: region, BucketLookup: c.lookup(),
		Transport: clock, MaxRetries: attempts,
	})
	if err != nil {
		return fail(err)
	}
	s := &Store{client: *client, c: c, bucket: c.Bucket, location: c.Location(), idle: transport.CloseIdleConnections, clock: clock}
	if c.Prefix != "" {
		s.root = c.Prefix + "/"
	}
	s.parallel = cmp.Or(c.Parallel, defaultParallel)
	s.slots = make(chan struct{}, s.parallel)
	return s, nil
}

// clockTransport measures the difference between the server's clock and ours,
// and bounds all answers that are not an object's content.
type clockTransport struct {
	inner http.RoundTripper
	skew  atomic.Int64 // nanoseconds by which the server is ahead
}

// RoundTrip implements http.RoundTripper.
func (t *clockTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.inner.RoundTrip(r)
	if err == nil {
		if at, derr := http.ParseTime(resp.Header.Get("Date")); derr == nil {
			t.skew.Store(int64(time.Until(at)))
		}
		if !isContent(r, resp) {
			resp.Body = &limitedBody{ReadCloser: resp.Body, left: maxAnswer}
		}
	}
	return resp, err
}

// isContent reports whether the body of an answer is the content of an object.
// Its reader bounds it.
func isContent(r *http.Request, resp *http.Response) bool {
	if r.Method != http.MethodGet || resp.StatusCode/100 != 2 || resp.ContentLength < 0 {
		return false
	}
	for key := range r.URL.Query() {
		if key != "versionId" {
			return false // a listing, or a property of the bucket
		}
	}
	return true
}

// limitedBody is a body that fails after a number of bytes.
type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the server's answer is too long")
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Skew returns how far the server's clock was ahead of this machine's when it
// last answered, rounded to a second. It is negative if the server's clock was
// slow.
func (s *Store) Skew() time.Duration { return time.Duration(s.clock.skew.Load()).Round(time.Second) }

// enter waits until fewer requests than allowed are in progress. The caller
// must call leave when its request has ended, including the body.
func (s *Store) enter(ctx context.Context, op, name string) error {
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &object.Error{Op: op, Name: name, Class: ctx.Err()}
	}
}

func (s *Store) leave() { <-s.slots }

// idleConn is a connection that fails after idleTimeout without traffic.
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

// empty reports whether there is no object below the prefix, or no version of
// one.
func (s *Store) empty(ctx context.Context, op string, versions bool) (bool, error) {
	opts := minio.ListObjectsOptions{Prefix: s.root, Recursive: true, MaxKeys: 1, WithVersions: versions}
	for i := range s.client.ListObjectsIter(ctx, s.bucket, opts) {
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
	replaced := name == "config" || strings.HasPrefix(name, "slots/")
	err := s.put(ctx, name, data, s.c.NoOverwrite && !replaced)
	if err != nil && !replaced && (errors.Is(err, object.ErrPermission) || errors.Is(err, errPresent)) && s.holds(ctx, name, data) {
		return nil // stored by an attempt whose answer was lost; the server refuses a second put
	}
	return err
}

// PutNew is Put, except that the server refuses to replace an object.
func (s *Store) PutNew(ctx context.Context, name string, data []byte) error {
	return s.put(ctx, name, data, true)
}

func (s *Store) put(ctx context.Context, name string, data []byte, onlyNew bool) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	if err := s.enter(ctx, "put", name); err != nil {
		return err
	}
	defer s.leave()
	sum := sha256.Sum256(data)
	opts := minio.PutObjectOptions{
		ContentType:          "application/octet-stream",
		DisableContentSha256: true, // sum is sent instead
		DisableMultipart:     true,
	}
	if strings.HasPrefix(name, "packs/") {
		opts.StorageClass = s.c.StorageClass
	}
	days := s.keep.Load()
	if days > 0 && object.LockedName(name) {
		opts.Mode = s.lockMode()
		opts.RetainUntilDate = time.Now().Add(time.Duration(days) * day)
	}
	if onlyNew {
		opts.SetMatchETagExcept("*")
	}
	md5sum := ""
	sent := s.c.Checksum
	if sent == None && opts.Mode != "" {
		sent = SHA256 // a locked object requires a checksum
	}
	switch sent {
	case "", SHA256:
		opts.UserMetadata = map[string]string{"x-amz-checksum-sha256": base64.StdEncoding.EncodeToString(sum[:])}
	case CRC32C:
		crc := binary.BigEndian.AppendUint32(nil, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
		opts.UserMetadata = map[string]string{"x-amz-checksum-crc32c": base64.StdEncoding.EncodeToString(crc)}
	case MD5:
		p := md5.Sum(data)
		md5sum = base64.StdEncoding.EncodeToString(p[:])
	}
	_, err := s.client.PutObject(ctx, s.bucket, s.root+name, object.ThrottledReader(ctx, bytes.NewReader(data)), int64(len(data)), md5sum, hex.EncodeToString(sum[:]), opts)
	if err != nil {
		return s.fail(ctx, "put", name, err)
	}
	return nil
}

// holds reports whether an object exists and its content is data.
func (s *Store) holds(ctx context.Context, name string, data []byte) bool {
	body, n, err := s.request(ctx, name, "", 0, -1)
	if err != nil {
		return false
	}
	defer body.Close()
	if n != int64(len(data)) {
		return false
	}
	p, err := io.ReadAll(io.LimitReader(body, n))
	return err == nil && bytes.Equal(p, data)
}

// Get implements object.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	return s.GetVersion(ctx, name, "", offset, length)
}

// GetVersion implements object.Versioned.
func (s *Store) GetVersion(ctx context.Context, name, id string, offset, length int64) ([]byte, error) {
	if err := check(ctx, "get", name); err != nil {
		return nil, err
	}
	if err := object.CheckRange("get", name, offset, length); err != nil {
		return nil, err
	}
	if err := s.enter(ctx, "get", name); err != nil {
		return nil, err
	}
	defer s.leave()
	if length == 0 {
		return []byte{}, s.nothing(ctx, name, id, offset)
	}
	body, n, err := s.request(ctx, name, id, offset, length)
	var beyond rangeError
	if length < 0 && errors.As(err, &beyond) {
		// Reading to the end from exactly the end is not an error in the
		// contract.
		info, _, herr := s.head(ctx, name, id)
		if herr != nil {
			return nil, herr
		}
		if _, n, err := object.Span("get", name, info.Size, offset, length); err != nil {
			return nil, err
		} else if n == 0 {
			return []byte{}, nil
		}
		if offset < -info.Size {
			// Some servers refuse a suffix that is longer than the object.
			// According to RFC 9110, section 14.1.2, it means the whole object.
			body, n, err = s.request(ctx, name, id, 0, -1)
		}
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if length < 0 {
		if err := object.CheckWhole("get", name, n); err != nil {
			return nil, err
		}
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
	if err := s.enter(ctx, "get", name); err != nil {
		return err
	}
	defer s.leave()
	if len(p) == 0 {
		return s.nothing(ctx, name, "", offset)
	}
	body, _, err := s.request(ctx, name, "", offset, int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, p); err != nil {
		return s.broken(ctx, name, err)
	}
	return nil
}

// nothing reads an empty range, which HTTP cannot express.
func (s *Store) nothing(ctx context.Context, name, id string, offset int64) error {
	info, _, err := s.head(ctx, name, id)
	if err == nil {
		_, _, err = object.Span("get", name, info.Size, offset, 0)
	}
	return err
}

// rangeError is the answer to a range that begins at or after the end.
type rangeError struct{ err error }

func (e rangeError) Error() string { return e.err.Error() }
func (e rangeError) Unwrap() error { return e.err }

// request requests a range of a length other than 0, and returns a body of n
// bytes. If the range begins at or after the object's end, the error is a
// rangeError.
func (s *Store) request(ctx context.Context, name, id string, offset, length int64) (body io.ReadCloser, n int64, err error) {
	opts := minio.GetObjectOptions{VersionID: id}
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
	if length > 0 {
		return body, length, nil // a server that ignores the range sends more
	}
	return body, info.Size, nil
}

// broken returns the error for a body that failed or ended before its length.
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
	if err := s.enter(ctx, "stat", name); err != nil {
		return object.Info{}, err
	}
	defer s.leave()
	info, _, err := s.head(ctx, name, "")
	return info, err
}

// head requests an object's size, time and headers.
func (s *Store) head(ctx context.Context, name, id string) (object.Info, http.Header, error) {
	i, err := s.client.StatObject(ctx, s.bucket, s.root+name, minio.StatObjectOptions{VersionID: id})
	if err != nil {
		return object.Info{}, nil, s.fail(ctx, "stat", name, err)
	}
	return object.Info{Name: name, Size: i.Size, Modified: i.LastModified}, i.Metadata, nil
}

// List implements object.Store. It skips keys that are not valid object names,
// which others may have put into the bucket.
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
	// If ctx ends, the iterator ends without an error.
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
	if s.keep.Load() > 0 {
		return s.deleteVersions(ctx, name)
	}
	return s.remove(ctx, name, "")
}

// remove deletes an object, or one version of it.
func (s *Store) remove(ctx context.Context, name, id string) error {
	if err := s.enter(ctx, "delete", name); err != nil {
		return err
	}
	defer s.leave()
	err := s.client.RemoveObject(ctx, s.bucket, s.root+name, minio.RemoveObjectOptions{VersionID: id})
	if err != nil {
		if failed := s.fail(ctx, "delete", name, err); !errors.Is(failed, object.ErrNotFound) {
			return failed
		}
	}
	return nil
}

// Traits implements object.Store. Amazon S3 lists an object as soon as its PUT
// has returned (Amazon S3 User Guide, "data consistency model").
func (s *Store) Traits() object.Traits {
	return object.Traits{Parallel: s.parallel, Uploads: min(max(3*s.parallel/8, 1), 6), ListPageSize: 1000, PreferWholeReads: true, Versioned: true}
}

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
