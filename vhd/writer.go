package vhd

import (
	"context"
	"errors"
	"fmt"
	"io"
)

var zeros [256 << 10]byte

// Writer streams a VHD: a disk.Sink. Data are written directly to the
// underlying writer. After an error, a Writer fails permanently.
type Writer struct {
	w      io.Writer
	layout Layout
	length int64
	err    error

	block   int64 // the block being written; -1 before the first
	at      int64 // bytes of it that are written
	written int64 // bytes of the VHD
}

// NewWriter returns a Writer of the VHD that layout describes. It writes
// nothing before the first WriteAt or Close. The caller closes w itself; w
// should handle small writes efficiently, because each block is preceded by a
// write of 512 bytes.
func NewWriter(w io.Writer, layout Layout) (*Writer, error) {
	if err := layout.Check(); err != nil {
		return nil, err
	}
	return &Writer{w: w, layout: layout, length: layout.Length(), block: -1}, nil
}

// ContentLength returns the whole VHD's length in bytes, which is known before
// the first byte is written.
func (w *Writer) ContentLength() int64 { return w.length }

// WriteAt implements disk.Sink. p must be within one block, which must be
// present in the layout. Gaps within a present block, and present blocks that
// are never written, become zeros; in a differencing VHD, where zeros would
// hide the parent's data, they are errors.
func (w *Writer) WriteAt(ctx context.Context, p []byte, off int64) error {
	if w.err != nil {
		return w.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	w.err = w.writeAt(ctx, p, off)
	return w.err
}

func (w *Writer) writeAt(ctx context.Context, p []byte, off int64) error {
	block, within := off/BlockSize, off%BlockSize
	switch {
	case off < 0 || off+int64(len(p)) > w.layout.Size:
		return fmt.Errorf("vhd: write at offset %d: the disk has %d bytes", off, w.layout.Size)
	case within+int64(len(p)) > BlockSize:
		return fmt.Errorf("vhd: write of %d bytes at offset %d crosses a block's edge", len(p), off)
	case block < w.block || block == w.block && within < w.at:
		return fmt.Errorf("vhd: write at offset %d after one at a higher offset", off)
	case !w.layout.present(block):
		return fmt.Errorf("vhd: write at offset %d: block %d was not announced", off, block)
	}
	if block > w.block {
		if err := w.finishTo(ctx, block); err != nil {
			return err
		}
		if err := w.begin(block); err != nil {
			return err
		}
	}
	if err := w.zeroTo(within); err != nil {
		return err
	}
	w.at += int64(len(p))
	return w.put(p)
}

// begin writes a block's bitmap.
func (w *Writer) begin(block int64) error {
	if err := w.put(w.layout.BlockHead(block)); err != nil {
		return err
	}
	w.block, w.at = block, 0
	return nil
}

// finishTo completes the current block, or else writes the head, and then
// writes the present blocks before block that have not been written.
func (w *Writer) finishTo(ctx context.Context, block int64) error {
	if w.block < 0 {
		if err := w.put(w.layout.Head()); err != nil {
			return err
		}
	} else if err := w.finish(); err != nil {
		return err
	}
	for b := w.block + 1; b < block; b++ {
		if !w.layout.present(b) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.begin(b); err != nil {
			return err
		}
		if err := w.finish(); err != nil {
			return err
		}
	}
	return nil
}

// finish completes the current block. Missing bytes after the disk's end are
// not a gap.
func (w *Writer) finish() error {
	if err := w.zeroTo(min(BlockSize, w.layout.Size-w.block*BlockSize)); err != nil {
		return err
	}
	return w.putZeros(w.layout.dataLength(w.block) - w.at)
}

func (w *Writer) zeroTo(within int64) error {
	if within > w.at && w.layout.Parent != nil {
		return fmt.Errorf("vhd: block %d of a differencing disk lacks bytes %d to %d", w.block, w.at, within)
	}
	return w.putZeros(within - w.at)
}

func (w *Writer) putZeros(n int64) error {
	for n > 0 {
		p := zeros[:min(n, int64(len(zeros)))]
		if err := w.put(p); err != nil {
			return err
		}
		n -= int64(len(p))
		w.at += int64(len(p))
	}
	return nil
}

func (w *Writer) put(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := w.w.Write(p)
	w.written += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

var errClosed = errors.New("vhd: writer is closed")

// Close writes the remaining parts: present blocks that were never written, and
// the footer. Only then is the VHD complete. An abandoned Writer must not be
// closed.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	if err := w.close(); err != nil {
		w.err = err
		return err
	}
	w.err = errClosed
	return nil
}

func (w *Writer) close() error {
	if err := w.finishTo(context.Background(), w.layout.Blocks()); err != nil {
		return err
	}
	if err := w.put(w.layout.Tail()); err != nil {
		return err
	}
	if w.written != w.length {
		return fmt.Errorf("vhd: wrote %d bytes, announced %d: the layout's blocks changed", w.written, w.length)
	}
	return nil
}
