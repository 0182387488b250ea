// Package all opens a store by its location, whichever backend that names.
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

// Options say how storage is used.
type Options struct {
	Retry retry.Policy
	// S3 holds what a location does not say of a bucket; its endpoint, bucket
	// and prefix do not count.
	S3 s3.Config
	// Endpoint is the URL for locations s3://bucket/prefix; "" is what
	// s3.Parse takes.
	Endpoint string
}

// Open opens the storage of a repository: s3:http(s)://host/bucket/prefix,
// s3://bucket/prefix, or else a path of this machine. What object.CheckLocation
// refuses is none. Requests are counted (see
// package count), tried again, and where older versions of objects are kept,
// those stand in for what was overwritten. What is not there is
// object.ErrNoRepository.
func Open(ctx context.Context, location string, o Options) (object.Store, error) {
	return choose(ctx, location, o, s3.Open, local.Open)
}

// Create makes the storage for a new repository; where something is already,
// it is object.ErrExists.
func Create(ctx context.Context, location string, o Options) (object.Store, error) {
	return choose(ctx, location, o, s3.Create, local.Create)
}

// Connect gives storage as it is, whatever is there, and without anything
// between: for trying it out. A folder must exist.
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

// IsS3 tells whether a location is one of S3, and not a folder.
func IsS3(location string) bool { return strings.HasPrefix(location, "s3:") }

// S3Config is the whole of what is known of a bucket.
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
