package all_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/all"
	"xenkeep/chunkstore/object/objecttest/s3server"
)

func roundTrip(t *testing.T, location string) {
	ctx := t.Context()
	if _, err := all.Open(ctx, location, all.Options{}); !errors.Is(err, object.ErrNoRepository) {
		t.Errorf("open of nothing: %v", err)
	}
	s, err := all.Create(ctx, location, all.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "config", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := all.Create(ctx, location, all.Options{}); !errors.Is(err, object.ErrExists) {
		t.Errorf("create over a repository: %v", err)
	}
	s, err = all.Open(ctx, location, all.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := s.Get(ctx, "config", 0, -1); err != nil || string(p) != "x" || s.Location() != location {
		t.Errorf("%s: %q, %v", s.Location(), p, err)
	}
}

func TestLocal(t *testing.T) { roundTrip(t, filepath.Join(t.TempDir(), "repo")) }

func TestS3(t *testing.T) {
	server := s3server.Start(t)
	for _, e := range server.Environ() {
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	roundTrip(t, server.Location("repo"))
}

func TestBadLocation(t *testing.T) {
	if _, err := all.Open(t.Context(), "s3:nonsense", all.Options{}); !errors.Is(err, object.ErrName) {
		t.Error(err)
	}
}
