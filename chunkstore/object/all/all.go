// Package all opens the store for a location with the right backend.
package all

import (
	"cmp"
	"context"
	"os"
	"strings"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/count"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/retry"
	"xenkeep/chunkstore/object/s3"
	"xenkeep/chunkstore/object/versions"
)

// Options configure the use of storage.
type Options struct {
	Retry retry.Policy
	// S3 contains the properties of a bucket that are not part of a location.
	// Its endpoint, TLS, bucket and prefix are ignored.
	S3 s3.Config
	// Endpoint is the URL for locations of the form s3://bucket/prefix. If it
	// is "", the default of s3.Parse applies.
	Endpoint string
}

// Open opens the storage of a repository: s3:http(s)://host/bucket/prefix,
// s3://bucket/prefix, or otherwise a path of this machine. It refuses locations
// that object.CheckLocation refuses. Requests are counted (see package count)
// and retried. If the storage keeps older versions of objects, those replace
// overwritten ones. If there is no repository, the error is
// object.ErrNoRepository.
func Open(ctx context.Context, location string, o Options) (object.Store, error) {
	return choose(ctx, location, o, s3.Open, local.Open)
}

// Create creates the storage for a new repository. If the location is not
// empty, the error is object.ErrExists.
func Create(ctx context.Context, location string, o Options) (object.Store, error) {
	return choose(ctx, location, o, s3.Create, local.Create)
}

// Connect returns the bare storage, whatever it contains, without retries,
// counting or versions, so that it can be tried out. A folder must exist.
func Connect(ctx context.Context, location string, o Options) (object.Store, error) {
	if err := object.CheckLocation(location); err != nil {
		return nil, err
	}
	if !IsS3(location) {
		return local.Connect(location)
	}
	config, err := S3Config(location, o)
	if err != nil {
		return nil, err
	}
	return s3.Connect(config)
}

// IsS3 reports whether a location is in S3, as opposed to a folder.
func IsS3(location string) bool { return strings.HasPrefix(location, "s3:") }

// S3Config returns the complete configuration of a bucket, from a location, the
// options and the environment.
func S3Config(location string, o Options) (s3.Config, error) {
	endpoint := cmp.Or(o.Endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), s3.Amazon)
	at, err := s3.ParseAt(location, endpoint)
	if err != nil {
		return s3.Config{}, err
	}
	c := o.S3
	c.Endpoint, c.TLS, c.Bucket, c.Prefix = at.Endpoint, at.TLS, at.Bucket, at.Prefix
	return c, c.Validate()
}

func choose(ctx context.Context, location string, o Options,
	onS3 func(context.Context, s3.Config) (*s3.Store, error), onDisk func(string) (*local.Store, error),
) (object.Store, error) {
	if err := object.CheckLocation(location); err != nil {
		return nil, err
	}
	if IsS3(location) {
		config, err := S3Config(location, o)
		if err != nil {
			return nil, err
		}
		var s *s3.Store
		if err := retry.Do(ctx, o.Retry, location, func() (err error) {
			s, err = onS3(ctx, config)
			return err
		}); err != nil {
			return nil, err
		}
		return versions.New(retry.New(count.New(s), o.Retry)), nil
	}
	if err := ctx.Err(); err != nil {
		return nil, &object.Error{Op: "open", Name: location, Class: err}
	}
	s, err := onDisk(location)
	if err != nil {
		return nil, err
	}
	return retry.New(count.New(s), o.Retry), nil
}
