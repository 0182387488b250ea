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

	"xenkeep/chunkstore/object"
)

// Amazon is the endpoint of locations that name none.
const Amazon = "https://s3.amazonaws.com"

// Style says where a request names the bucket.
type Style string

// The styles; with Auto, endpoints of Amazon, Google and Aliyun get virtual
// hosts and all others paths.
const (
	Auto    Style = "auto"
	Path    Style = "path"    // https://host/bucket/key
	Virtual Style = "virtual" // https://bucket.host/key
)

// Checksum says what is sent with an object so that the server can check, and
// keep, it. The request's signature covers the SHA-256 in any case.
type Checksum string

// The checksums.
const (
	SHA256 Checksum = "sha256"
	CRC32C Checksum = "crc32c"
	MD5    Checksum = "md5" // Content-MD5, for servers that know no other
	None   Checksum = "none"
)

// LockMode is what an object's lock means.
type LockMode string

// The modes of the Amazon S3 User Guide, "S3 Object Lock".
const (
	Compliance LockMode = "compliance" // nobody removes it
	Governance LockMode = "governance" // who may bypass governance does
)

// Config says which bucket, and how it is reached and used. But for Endpoint
// and Bucket the zero value of each field is a good one.
type Config struct {
	Endpoint string // host or host:port
	TLS      bool
	Bucket   string
	Prefix   string // of all keys, without slashes at its ends; may be empty
	Region   string // empty: AWS_REGION, AWS_DEFAULT_REGION, else the server is asked

	// AccessKey and SecretKey are used where they are set; else see the package
	// comment. Profile names one of the shared credentials file.
	AccessKey, SecretKey string
	Profile              string

	Style        Style  // "": Auto
	CAFile       string // PEM, in addition to the system's; empty: AWS_CA_BUNDLE
	StorageClass string // of packs; empty: the bucket's
	Checksum     Checksum
	LockMode     LockMode // "": Compliance
	Parallel     int      // requests at once; 0: 8
	// NoOverwrite sends objects that are never replaced so that the server
	// refuses to replace them ("If-None-Match: *").
	NoOverwrite bool

	dial *func(network, addr string) (net.Conn, error) // for tests
}

// archived are storage classes whose objects cannot be read at once.
var archived = map[string]bool{"GLACIER": true, "DEEP_ARCHIVE": true}

// Validate refuses options that cannot be.
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

// Parse reads a location: s3:http(s)://host[:port]/bucket[/prefix], or
// s3://bucket[/prefix] at the endpoint that AWS_ENDPOINT_URL_S3 or
// AWS_ENDPOINT_URL names, else Amazon's.
func Parse(location string) (Config, error) {
	return ParseAt(location, cmp.Or(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), Amazon))
}

// ParseAt is Parse with an endpoint, a URL, for locations that name none.
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

func (c *Config) lookup() minio.BucketLookupType {
	switch c.Style {
	case Path:
		return minio.BucketLookupPath
	case Virtual:
		return minio.BucketLookupDNS
	}
	return minio.BucketLookupAuto
}

// roots are the system's certificates and those of the CA file; nil for the
// system's alone.
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
		return credentials.New(file) // named: nothing else is meant
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{},
		&credentials.EnvMinio{},
		file,
		// Outside of Amazon nobody answers at the address asked here.
		&credentials.IAM{Client: &http.Client{Timeout: 10 * time.Second}},
	})
}
