package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var (
	// ErrCorrupt is returned for an inconsistent image.
	ErrCorrupt = errors.New("corrupt qcow2 image")
	// ErrTruncated is returned for an image whose file ends before its data.
	ErrTruncated = errors.New("truncated qcow2 image")
	// ErrNotAlone is returned for an image that cannot be read by itself: it
	// has a backing file, stores its data in another file, or is encrypted.
	ErrNotAlone = errors.New("the image is not whole by itself")
)

// Bits of the incompatible features.
const (
	featureCorrupt  = 1 << 1
	featureDataFile = 1 << 2
	featureL2Wide   = 1 << 4 // entries of an L2 table have 16 bytes
	featuresKnown   = 1<<0 | featureCorrupt | featureDataFile | 1<<3 | featureL2Wide

	zeroCluster = 1 << 0
	compressed  = 1 << 62
	offsetMask  = 0x00fffffffffffe00
)

// Head holds the parts of an image's header that are needed to find its
// clusters.
type Head struct {
	Size        int64 // of the disk, bytes
	clusterBits uint
	entrySize   int64 // of an L2 table
	l1At, l1    int64 // the L1 table: its position and its number of entries
}

// ReadHead reads the header of an image. It refuses features that make qemu
// read other files than this one, or that need a secret.
func ReadHead(f io.ReaderAt) (*Head, error) {
	p := make([]byte, headerSize)
	n, err := f.ReadAt(p, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n < 72 {
		return nil, fmt.Errorf("header: %d bytes: %w", n, ErrTruncated)
	}
	be := binary.BigEndian
	version, features := be.Uint32(p[4:]), uint64(0)
	if string(p[:4]) != "QFI\xfb" || version < 2 || version > 3 {
		return nil, fmt.Errorf("header: version %d: %w", version, ErrCorrupt)
	}
	if version >= 3 {
		if n < headerSize {
			return nil, fmt.Errorf("header: %d bytes: %w", n, ErrTruncated)
		}
		features = be.Uint64(p[72:])
	}
	switch {
	case be.Uint64(p[8:]) != 0:
		return nil, fmt.Errorf("it builds on another file: %w", ErrNotAlone)
	case features&featureDataFile != 0:
		return nil, fmt.Errorf("its data is in another file: %w", ErrNotAlone)
	case be.Uint32(p[32:]) != 0:
		return nil, fmt.Errorf("it is encrypted: %w", ErrNotAlone)
	case features&featureCorrupt != 0:
		return nil, fmt.Errorf("qemu has marked it as corrupt: %w", ErrCorrupt)
	case features&^featuresKnown != 0:
		return nil, fmt.Errorf("header: features %#x: %w", features&^featuresKnown, errors.ErrUnsupported)
	}
	h := &Head{
		Size: int64(be.Uint64(p[24:])), clusterBits: uint(be.Uint32(p[20:])), entrySize: 8,
		l1: int64(be.Uint32(p[36:])), l1At: int64(be.Uint64(p[40:])),
	}
	if features&featureL2Wide != 0 {
		h.entrySize = 16
	}
	if h.clusterBits < 9 || h.clusterBits > 21 || h.Size < 0 || h.Size > 1<<60 || h.l1 > maxL1/8 || h.l1At < 0 || h.l1At > 1<<60 {
		return nil, fmt.Errorf("header: clusters of %d bits, %d bytes, an L1 table of %d entries at byte %d: %w", h.clusterBits, h.Size, h.l1, h.l1At, ErrCorrupt)
	}
	if span := h.span(); h.l1 < (h.Size+span-1)/span {
		return nil, fmt.Errorf("header: an L1 table of %d entries for %d bytes: %w", h.l1, h.Size, ErrCorrupt)
	}
	return h, nil
}

// cluster returns the size of a cluster.
func (h *Head) cluster() int64 { return 1 << h.clusterBits }

// span returns how many bytes of the disk an L2 table describes.
func (h *Head) span() int64 { return h.cluster() / h.entrySize * h.cluster() }

// Whole verifies that all tables and clusters of the disk are within the file
// of size bytes. qemu reads zeros after the end of the file, so it does not
// detect a truncated image.
func (h *Head) Whole(f io.ReaderAt, size int64) error {
	used := (h.Size + h.span() - 1) / h.span()
	if used == 0 {
		return nil
	}
	if h.l1At+8*used > size {
		return fmt.Errorf("its L1 table ends at byte %d, the file at %d: %w", h.l1At+8*used, size, ErrTruncated)
	}
	l1, l2 := make([]byte, 8*used), make([]byte, h.cluster())
	if _, err := f.ReadAt(l1, h.l1At); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for i := range used {
		at := int64(binary.BigEndian.Uint64(l1[8*i:]) & offsetMask)
		if at == 0 {
			continue
		}
		if at+h.cluster() > size {
			return fmt.Errorf("its L2 table %d ends at byte %d, the file at %d: %w", i, at+h.cluster(), size, ErrTruncated)
		}
		if _, err := f.ReadAt(l2, at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := h.table(l2, i*h.span(), size); err != nil {
			return err
		}
	}
	return nil
}

// table verifies that the clusters of an L2 table, which describes the disk
// from byte first on, are within the file.
func (h *Head) table(l2 []byte, first, size int64) error {
	for k := int64(0); k < h.cluster()/h.entrySize; k++ {
		at := first + k*h.cluster()
		if at >= h.Size {
			break
		}
		end, exact := h.clusterEnd(l2[k*h.entrySize:], min(h.cluster(), h.Size-at))
		// The length of a compressed cluster is counted in sectors, and the
		// file may end within its last one.
		if end > size && (exact || end-size >= 512) {
			return fmt.Errorf("the data of byte %d of the disk ends at byte %d, the file at %d: %w", at, end, size, ErrTruncated)
		}
	}
	return nil
}

// clusterEnd returns where the first n bytes of the cluster of an entry end in
// the file, or zero if the file holds none of them.
func (h *Head) clusterEnd(entry []byte, n int64) (end int64, exact bool) {
	e := binary.BigEndian.Uint64(entry)
	if e&compressed != 0 {
		bits := 62 - (h.clusterBits - 8)
		at := int64(e & (1<<bits - 1))
		sectors := int64(e &^ (3 << 62) >> bits)
		return at&^511 + 512*(sectors+1), false
	}
	at := int64(e & offsetMask)
	switch {
	case at == 0:
		return 0, true
	case h.entrySize == 8 && e&zeroCluster != 0:
		return 0, true
	case h.entrySize == 16:
		held := uint32(binary.BigEndian.Uint64(entry[8:])) // the low half: subclusters that hold data
		sub := h.cluster() / 32
		last := int64(-1)
		for i := range int64(32) {
			if held&(1<<i) != 0 && i*sub < n {
				last = i
			}
		}
		if last < 0 {
			return 0, true
		}
		n = min(n, (last+1)*sub)
	}
	return at + n, true
}
