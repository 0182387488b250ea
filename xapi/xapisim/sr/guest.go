package sr

import (
	"bytes"
	"fmt"
)

// WriteImage simulates a guest that writes: the volume becomes equal to the raw
// or VHD file at path, and only the 4 KiB pages that differ are written, so
// that VHD blocks are allocated and CBT bits set exactly there. It returns the
// number of bytes written. The file's size, rounded as the SR does, must be
// equal to the volume's.
func (v *Volume) WriteImage(path string) (int64, error) {
	img, err := openImage(path)
	if err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	defer img.file.Close()
	size := v.Size()
	if want, err := v.sr.roundSize(img.size, v.raw); err != nil || want != size {
		return 0, fmt.Errorf("write image: %s holds %d bytes, the disk %d", path, img.size, size)
	}
	var written int64
	old, buf := make([]byte, blockSize), make([]byte, blockSize)
	for b := range (size + blockSize - 1) / blockSize {
		n, err := v.writeImageBlock(img, b, old, buf)
		written += n
		if err != nil {
			return written, fmt.Errorf("write image: block %d: %w", b, err)
		}
	}
	return written, nil
}

// writeImageBlock makes one block equal to that of the image.
func (v *Volume) writeImageBlock(img *image, block int64, old, buf []byte) (written int64, err error) {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	if v.top == nil {
		return 0, ErrGone
	}
	have := img.have.get(block)
	if have.empty() && !v.top.holds(block) {
		return 0, nil // a hole on both sides
	}
	start := block * blockSize
	n := int(min(blockSize, v.top.size-start))
	old, buf = old[:n], buf[:n]
	if err := v.top.readBlock(old, block, 0, nil); err != nil {
		return 0, err
	}
	need := allPages
	if err := readPages(img, &need, have, buf, start, 0); err != nil {
		return 0, err
	}
	for lo, hi := need.next(0); lo < pagesPerBlock; lo, hi = need.next(hi) {
		if from, to := clip(lo, hi, 0, n); from < to {
			clear(buf[from:to])
		}
	}
	if bytes.Equal(old, buf) {
		return 0, nil
	}
	differs := func(at int) bool {
		end := min(at+pageSize, n)
		return !bytes.Equal(old[at:end], buf[at:end])
	}
	for at := 0; at < n; {
		if !differs(at) {
			at += pageSize
			continue
		}
		end := at + pageSize
		for end < n && differs(end) {
			end += pageSize
		}
		end = min(end, n)
		if _, err := v.writeAt(buf[at:end], start+int64(at)); err != nil {
			return written, err
		}
		written += int64(end - at)
		at = end
	}
	return written, nil
}

// holds reports whether any layer of the chain holds data of the block, or the
// block contains garbage.
func (l *layer) holds(block int64) bool {
	for ; l != nil; l = l.parent {
		l.mu.RLock()
		held := l.garbage || l.hasBlock(block)
		l.mu.RUnlock()
		if held {
			return true
		}
	}
	return false
}

// CopyFrom writes src's content to the beginning of v, which must not be
// smaller. Blocks of zeros are skipped if v was created with zeros, so v should
// be new on such volumes (xen-api, sparse_dd).
func (v *Volume) CopyFrom(src *Volume) error {
	size := src.Size()
	if v.Size() < size {
		return fmt.Errorf("copy %s to %s: too small", src.uuid, v.uuid)
	}
	thin := !v.raw || !v.sr.LVM()
	buf := make([]byte, blockSize)
	for b := range (size + blockSize - 1) / blockSize {
		if thin && !src.holds(b) {
			continue
		}
		part := buf[:min(blockSize, size-b*blockSize)]
		if _, err := src.ReadAt(part, b*blockSize); err != nil {
			return fmt.Errorf("copy %s to %s: %w", src.uuid, v.uuid, err)
		}
		if thin && bytes.Equal(part, zeros[:len(part)]) {
			continue
		}
		if _, err := v.WriteAt(part, b*blockSize); err != nil {
			return fmt.Errorf("copy %s to %s: %w", src.uuid, v.uuid, err)
		}
	}
	return nil
}

func (v *Volume) holds(block int64) bool {
	v.sr.mu.RLock()
	defer v.sr.mu.RUnlock()
	return v.top != nil && v.top.holds(block)
}

// EqualImage reports whether the volume's content equals that of the raw or VHD
// file at path, with zeros after the file's end.
func (v *Volume) EqualImage(path string) (bool, error) {
	img, err := openImage(path)
	if err != nil {
		return false, fmt.Errorf("compare image: %w", err)
	}
	defer img.file.Close()
	size := v.Size()
	if img.size > size {
		return false, nil
	}
	got, want := make([]byte, blockSize), make([]byte, blockSize)
	for b := range (size + blockSize - 1) / blockSize {
		have := img.have.get(b)
		if have.empty() && !v.holds(b) {
			continue
		}
		start := b * blockSize
		n := int(min(blockSize, size-start))
		if _, err := v.ReadAt(got[:n], start); err != nil {
			return false, fmt.Errorf("compare image: %w", err)
		}
		clear(want)
		need := allPages
		if err := readPages(img, &need, have, want[:n], start, 0); err != nil {
			return false, fmt.Errorf("compare image: %w", err)
		}
		if !bytes.Equal(got[:n], want[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// Holds reports whether any file of the volume's chain has the block that
// contains off.
func (v *Volume) Holds(off int64) bool { return v.holds(off / blockSize) }
