package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/filekind"
	"xenkeep/internal/child"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/transfer"
	"xenkeep/nbd"
	"xenkeep/qcow2"
	"xenkeep/repo"
	"xenkeep/vhd"
)

// imported is a disk image open for reading.
type imported struct {
	disk.Source
	vhd       *vhd.File // nil for others
	allocated int64
	close     func()
}

// isDelta reports whether the image contains only the differences from another.
func (i *imported) isDelta() bool { return i.vhd != nil && i.vhd.IsDelta() }

// link returns the image as a possible parent of a differencing VHD.
func (i *imported) link(file string, st os.FileInfo, s *repo.Snapshot) *link {
	if i.vhd == nil {
		return nil
	}
	f := i.vhd.Footer()
	return &link{
		file: file, id: f.ID, size: i.Size(), times: [2]uint32{f.Time, vhd.Time(st.ModTime())},
		vm: s.VM, root: chunk.ID(s.Disks[0].Root),
	}
}

// openImage opens a disk image.
func (im *importer) openImage(ctx context.Context, file string, kind filekind.Kind) (*imported, error) {
	switch {
	case kind == filekind.QCOW2:
		return openQCOW2(ctx, file)
	case kind == filekind.VHD:
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err == nil {
			var v *vhd.File
			if v, err = vhd.OpenFile(f, size, vhd.Options{}); err == nil {
				return &imported{Source: v.Reader(), vhd: v, allocated: v.Allocated(), close: func() { _ = f.Close() }}, nil
			}
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), f.Close())
	case !kind.IsDisk():
		return nil, transfer.Foreign(file, kind)
	}
	i, err := transfer.OpenImage(file, true)
	if err != nil {
		return nil, err
	}
	return &imported{Source: i, allocated: i.Allocated, close: func() { _ = i.Close() }}, nil
}

// checkQCOW2 checks that all data of an image are in its file. It refuses images for
// which qemu would read other files, or that need a secret.
func checkQCOW2(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := qcow2.ReadHead(f)
	if err == nil {
		err = h.Whole(f, st.Size())
	}
	if errors.Is(err, qcow2.ErrNotAlone) {
		whole := strings.TrimSuffix(f.Name(), filepath.Ext(f.Name())) + "-whole.qcow2"
		return &transfer.ForeignError{
			File: f.Name(), Why: "a qcow2 image: " + err.Error(), Also: err,
			Advice: "make it whole first: qemu-img convert -p -O qcow2 " + transfer.QuoteFile(f.Name()) + " " + transfer.QuoteFile(whole),
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// qcow2Wait is the time limit for qemu-nbd to open an image.
const qcow2Wait = 30 * time.Second

// openQCOW2 lets qemu-nbd read the image, through a socket that only this user can
// open. That avoids a copy of the image.
func openQCOW2(ctx context.Context, file string) (_ *imported, err error) {
	tool, err := exec.LookPath("qemu-nbd")
	if err != nil {
		return nil, fmt.Errorf("%s: a qcow2 image is read by qemu-nbd, which is not installed here (Debian package qemu-utils), or convert it elsewhere (qemu-img convert -O raw): %w", file, transfer.ErrForeignImage)
	}
	f, err := transfer.OpenSource(file)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := checkQCOW2(f); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	q, err := startQemuNBD(tool, path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			q.stop()
		}
	}()
	d, err := q.dial(ctx, file)
	if err != nil {
		return nil, err
	}
	held, err := d.Held(ctx)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	src, err := d.Source(held, 0)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	var allocated int64
	for _, e := range held {
		allocated += e.Length
	}
	// qemu reads the area after the file's end as zeros.
	return &imported{Source: transfer.CheckLength(src, f), allocated: allocated, close: func() {
		_ = f.Close()
		_ = d.Close()
		_ = src.Close()
		q.stop()
	}}, nil
}

// qemuNBD is a process of qemu-nbd that serves one image on a socket in dir.
type qemuNBD struct {
	cmd    *exec.Cmd
	dir    string
	output tailBuffer    // complete when ended is closed
	ended  chan struct{} // closed when the process has ended
}

// startQemuNBD starts qemu-nbd; the caller must call stop.
func startQemuNBD(tool, image string) (*qemuNBD, error) {
	dir, err := os.MkdirTemp("", "xenkeep-")
	if err != nil {
		return nil, err
	}
	q := &qemuNBD{dir: dir, ended: make(chan struct{})}
	q.cmd = exec.Command(tool, "--read-only", "--persistent", "--shared=8", "--format=qcow2", "--socket="+q.socket(), image)
	q.cmd.Stderr, q.cmd.Env = &q.output, child.Env()
	if err := q.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	go func() {
		defer close(q.ended)
		_ = q.cmd.Wait()
	}()
	return q, nil
}

func (q *qemuNBD) socket() string { return filepath.Join(q.dir, "nbd") }

// dial connects to the process as soon as it listens. file is the image's name for
// errors.
func (q *qemuNBD) dial(ctx context.Context, file string) (*nbd.Disk, error) {
	limit := time.NewTimer(qcow2Wait)
	defer limit.Stop()
	for {
		d, err := nbd.Open(ctx, nbd.DiskOptions{
			Endpoints: []nbd.Endpoint{{Network: "unix", Address: q.socket()}}, Attempts: 1, Connections: 4,
		})
		if err == nil {
			return d, nil
		}
		select {
		case <-q.ended:
			return nil, fmt.Errorf("%s: qemu-nbd: %s: %w", file, q.output.text(), transfer.ErrForeignImage)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-limit.C:
			return nil, fmt.Errorf("%s: qemu-nbd: %w", file, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop kills the process, waits for its end, and removes the socket.
func (q *qemuNBD) stop() {
	_ = q.cmd.Process.Kill()
	<-q.ended
	_ = os.RemoveAll(q.dir)
}

// tailBuffer keeps the end of a program's output.
type tailBuffer struct{ p []byte }

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.p = append(t.p, p...)
	t.p = t.p[max(0, len(t.p)-1000):]
	return len(p), nil
}

func (t *tailBuffer) text() string { return job.OneLine(errors.New(string(t.p))) }
