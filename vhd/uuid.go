package vhd

import (
	"fmt"
	"io"
)

// UUID names a VHD.
type UUID [16]byte

// String returns u in the usual 8-4-4-4-12 form.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// NewUUID returns a random UUID (version 4, RFC 9562) made from rand.
func NewUUID(rand io.Reader) (UUID, error) {
	var u UUID
	if _, err := io.ReadFull(rand, u[:]); err != nil {
		return UUID{}, fmt.Errorf("vhd: draw a UUID: %w", err)
	}
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u, nil
}

// HashUUID returns the first 16 bytes of a hash as a UUID of version 5 (RFC
// 9562): the same for the same hash. The version is set because other programs
// refuse unknown versions.
func HashUUID(hash [32]byte) (u UUID) {
	copy(u[:], hash[:])
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return u
}
