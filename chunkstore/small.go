package chunkstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
)

// provePiece is how many bytes of a large list are in memory while it is
// verified.
const provePiece = 4 << 20

// ReadSmall reads a small object, which the caller must verify. Its name must
// end in the SHA-256 of its content. An object that is larger than
// object.MaxWhole is read into memory only after a first pass over it has
// verified it as seal.Keys.VerifyNamed does, so that nobody without a key of the
// repository can make a reader use more memory.
func ReadSmall(ctx context.Context, objects object.Store, keys *seal.Keys, kind seal.ObjectKind, name string) ([]byte, error) {
	data, err := objects.Get(ctx, name, 0, -1)
	if errors.Is(err, object.ErrTooLarge) && object.MaxSize(name) > object.MaxWhole(name) {
		data, err = readLarge(ctx, objects, keys, kind, name)
	}
	switch {
	case errors.Is(err, object.ErrTooLarge):
		return nil, fmt.Errorf("%w: %w", err, seal.ErrCorrupt)
	case err != nil:
		return nil, err
	}
	return data, nil
}

// readLarge verifies an object's name, certificate and signature in pieces, and
// then reads it as a whole.
func readLarge(ctx context.Context, objects object.Store, keys *seal.Keys, kind seal.ObjectKind, name string) ([]byte, error) {
	info, err := objects.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if info.Size > object.MaxSize(name) {
		return nil, &object.Error{Op: "get", Name: name, Class: object.ErrTooLarge, Cause: fmt.Errorf("%d bytes", info.Size)}
	}
	p := seal.NewObjectProof(info.Size)
	if err := eachPiece(ctx, objects, name, info.Size, p.Add); err != nil {
		return nil, err
	}
	if sum := p.Sum(); !strings.HasSuffix(name, hex.EncodeToString(sum[:])) {
		return nil, fmt.Errorf("%s: content does not fit its name: %w", name, seal.ErrCorrupt)
	}
	if err := p.Verify(keys, kind); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	data := make([]byte, info.Size)
	return data, objects.GetInto(ctx, name, 0, data)
}

// eachPiece calls fn with all bytes of an object of size bytes, in order and in
// pieces. Fn must not retain them.
func eachPiece(ctx context.Context, objects object.Store, name string, size int64, fn func(p []byte)) error {
	p := make([]byte, min(size, provePiece))
	for at := int64(0); at < size; at += int64(len(p)) {
		p = p[:min(int64(cap(p)), size-at)]
		if err := objects.GetInto(ctx, name, at, p); err != nil {
			return err
		}
		fn(p)
	}
	return nil
}

// ReadSmallHead returns the parts of a small object that can be read without a
// key: its kind and its plain head.
// The content is verified to match the name, which anyone can achieve. At most
// the head is read into memory as a whole.
func ReadSmallHead(ctx context.Context, objects object.Store, name string) (kind seal.ObjectKind, head []byte, err error) {
	data, err := objects.Get(ctx, name, 0, -1)
	if errors.Is(err, object.ErrTooLarge) && object.MaxSize(name) > object.MaxWhole(name) {
		data, err = readLargeHead(ctx, objects, name)
	} else if err == nil {
		err = seal.CheckName(name, data)
	}
	if err != nil {
		return 0, nil, err
	}
	return seal.ObjectHead(data)
}

// readLargeHead returns the first bytes of a large object, up to the end of its
// plain head, and as many further ones as seal.ObjectHead needs.
func readLargeHead(ctx context.Context, objects object.Store, name string) ([]byte, error) {
	info, err := objects.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if info.Size > object.MaxSize(name) {
		return nil, &object.Error{Op: "get", Name: name, Class: object.ErrTooLarge, Cause: fmt.Errorf("%d bytes", info.Size)}
	}
	h := sha256.New()
	if err := eachPiece(ctx, objects, name, info.Size, func(p []byte) { _, _ = h.Write(p) }); err != nil {
		return nil, err
	}
	if !strings.HasSuffix(name, hex.EncodeToString(h.Sum(nil))) {
		return nil, fmt.Errorf("content does not fit its name: %w", seal.ErrCorrupt)
	}
	return objectStart(ctx, objects, name)
}

// ReadPlainHead returns the plain head of a small object, of which nothing is
// verified.
func ReadPlainHead(ctx context.Context, objects object.Store, name string) ([]byte, error) {
	data, err := objectStart(ctx, objects, name)
	if err != nil {
		return nil, err
	}
	_, head, err := seal.ObjectHead(data)
	return head, err
}

// objectStart reads an object up to the end of its plain head, and as many
// further bytes as seal.ObjectHead needs.
func objectStart(ctx context.Context, objects object.Store, name string) ([]byte, error) {
	start, err := objects.Get(ctx, name, 0, seal.ObjectMin)
	if err != nil {
		return nil, err
	}
	n := seal.HeadLength(start)
	if n > maxHead {
		return nil, fmt.Errorf("head of %d bytes: %w", n, seal.ErrCorrupt)
	}
	return objects.Get(ctx, name, 0, seal.ObjectMin+n)
}

// maxHead bounds the plain head of a small object: the packs of a large
// repository.
const maxHead = 64 << 20
