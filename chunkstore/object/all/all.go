// Package all opens a store by its location, whichever backend that names.
package all

import (
	"context"
	"strings"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/retry"
	"xenkeep/chunkstore/object/s3"
)

// Open opens the storage of a repository: s3:http(s)://host/bucket/prefix, or
// else a path of this machine. Its calls are tried again as policy says. What
// is not there is object.ErrNoRepository.
func Open(ctx context.Context, location string, policy retry.Policy) (object.Store, error) {
	return choose(ctx, location, policy, s3.Open, local.Open)
}

// Create makes the storage for a new repository; where something is already,
// it is object.ErrExists.
func Create(ctx context.Context, location string, policy retry.Policy) (object.Store, error) {
	return choose(ctx, location, policy, s3.Create, local.Create)
}

func choose(ctx context.Context, location string, policy retry.Policy,
	onS3 func(context.Context, s3.Config) (*s3.Store, error), onDisk func(string) (*local.Store, error),
) (object.Store, error) {
	if strings.HasPrefix(location, "s3:") {
		config, err := s3.Parse(location)
		if err != nil {
			return nil, err
		}
		s, err := onS3(ctx, config)
		if err != nil {
			return nil, err
		}
		return retry.New(s, policy), nil
	}
	if err := ctx.Err(); err != nil {
		return nil, &object.Error{Op: "open", Name: location, Class: err}
	}
	s, err := onDisk(location)
	if err != nil {
		return nil, err
	}
	return retry.New(s, policy), nil
}
