package s3

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"xenkeep/chunkstore/object"
)

// Amazon is the endpoint of locations that contain none.
const Amazon = "https://s3.amazonaws.com"

// Style determines where a request contains the name of the bucket.
type Style string

// The styles. With Auto, endpoints of Amazon, Google and Aliyun use virtual
// hosts, and all others use paths.
const (
	Auto    Style = "auto"
	Path    Style = "path"    // https://host/bucket/key
	Virtual Style = "virtual" // https://bucket.host/key
)

// Checksum selects the checksum that is sent with an object, so that the server
// can verify and store it. The signature of the request covers the SHA-256 in
// any case.
type Checksum string

// The checksums.
const (
	SHA256 Checksum = "sha256"
	CRC32C Checksum = "crc32c"
	MD5    Checksum = "md5" // Content-MD5, for servers that support no other
	None   Checksum = "none"
)

// LockMode is the kind of an object's lock.
type LockMode string

// The modes of the Amazon S3 User Guide, "S3 Object Lock".
const (
	Compliance LockMode = "compliance" // nobody can remove it
	Governance LockMode = "governance" // users with the permission to bypass governance can
)

// Config selects a bucket, and configures how it is accessed. The zero value of
// each field except Endpoint and Bucket is a good default.
type Config struct {
	Endpoint string // host or host:port
	TLS      bool
	Bucket   string
	Prefix   string // of all keys, without slashes at either end; may be empty
	Region   string // empty: AWS_REGION, AWS_DEFAULT_REGION, otherwise the server is asked

	// AccessKey and SecretKey are used if they are set; otherwise see the
	// package comment. Profile is a profile of the shared credentials file.
	AccessKey, SecretKey string
	Profile              string

	Style        Style  // "": Auto
	CAFile       string // PEM, in addition to the system's; empty: AWS_CA_BUNDLE
	StorageClass string // of packs; empty: the bucket's
	Checksum     Checksum
	LockMode     LockMode // "": Compliance
	Parallel     int      // concurrent requests; 0: 8
	// NoOverwrite makes the server refuse to replace objects that are never
	// replaced ("If-None-Match: *").
	NoOverwrite bool

	dial *func(network, addr string) (net.Conn, error) // for tests
}

// archived are storage classes whose objects cannot be read immediately.
var archived = map[string]bool{"GLACIER": true, "DEEP_ARCHIVE": true}

// Validate refuses invalid options.
func (c *Config) Validate() error {
	bad := func(why string) error { return errors.New("s3: " + why) }
	switch {
	case c.Style != "" && c.Style != Auto && c.Style != Path && c.Style != Virtual:
		return bad("style " + string(c.Style))
	case c.Checksum != "" && c.Checksum != SHA256 && c.Checksum != CRC32C && c.Checksum != MD5 && c.Checksum != None:
		return bad("checksum " + string(c.Checksum))
	case c.LockMode != "" && c.LockMode != Compliance && c.LockMode != Governance:
		return bad("lock mode " + string(c.LockMode))
	case c.Parallel < 0 || c.Parallel > 256:
		return bad("requests at once must be 1 to 256")
	case archived[strings.ToUpper(c.StorageClass)]:
		return bad("objects of storage class " + c.StorageClass + " cannot be read before they are fetched from the archive: take GLACIER_IR, STANDARD_IA or another")
	}
	return nil
}

// Parse parses a location: s3:http(s)://host[:port]/bucket[/prefix], or
// s3://bucket[/prefix] at the endpoint in AWS_ENDPOINT_URL_S3 or
// AWS_ENDPOINT_URL, or otherwise at Amazon's.
func Parse(location string) (Config, error) {
	return ParseAt(location, cmp.Or(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), Amazon))
}

// ParseAt is Parse with an endpoint, which is a URL, for locations that contain
// none.
func ParseAt(location, endpoint string) (Config, error) {
	rest, ok := strings.CutPrefix(location, "s3:")
	if !ok {
		return Config{}, badLocation("does not begin with s3:")
	}
	if path, ok := strings.CutPrefix(rest, "//"); ok {
		at, err := url.Parse(endpoint)
		if err != nil || strings.Trim(at.Path, "/") != "" {
			return Config{}, badLocation("the endpoint is no URL of a host: want https://host")
		}
		rest = strings.TrimRight(endpoint, "/") + "/" + path
	}
	u, err := url.Parse(rest)
	if err != nil {
		return Config{}, badLocation("not a URL") // err would repeat a password in it
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Config{}, badLocation("credentials and parameters do not belong there")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return Config{}, badLocation("want s3:https://host/bucket/prefix or s3://bucket/prefix")
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if bucket == "" {
		return Config{}, badLocation("no bucket; want s3:https://host/bucket/prefix")
	}
	if err := s3utils.CheckValidBucketName(bucket); err != nil {
		return Config{}, badLocation(fmt.Sprintf("bucket %q: %v", bucket, err))
	}
	return Config{
		Endpoint: u.Host, TLS: u.Scheme == "https",
		Bucket: bucket, Prefix: strings.Trim(prefix, "/"),
	}, nil
}

func badLocation(why string) error {
	return &object.Error{Op: "open", Name: "s3 location", Class: object.ErrName, Cause: errors.New(why)}
}

// Location returns the location in the form that Parse reads.
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

func (c *Config) lookup() minio.BucketLookupType {
	switch c.Style {
	case Path:
		return minio.BucketLookupPath
	case Virtual:
		return minio.BucketLookupDNS
	}
	return minio.BucketLookupAuto
}

// roots returns the certificates of the system and of the CA file, or nil for
// those of the system only.
func (c *Config) roots() (*x509.CertPool, error) {
	name := cmp.Or(c.CAFile, os.Getenv("AWS_CA_BUNDLE"))
	if name == "" || !c.TLS {
		return nil, nil
	}
	pem, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: no certificate in PEM form", name)
	}
	return pool, nil
}

func creds(c *Config) *credentials.Credentials {
	if c.AccessKey != "" {
		return credentials.NewStaticV4(c.AccessKey, c.SecretKey, "")
	}
	file := &credentials.FileAWSCredentials{Profile: c.Profile}
	if c.Profile != "" {
		return credentials.New(file) // an explicit profile: nothing else is tried
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{},
		&credentials.EnvMinio{},
		file,
		// Outside of Amazon, no server answers at the address that this uses.
		&credentials.IAM{Client: &http.Client{Timeout: 10 * time.Second}},
	})
}
