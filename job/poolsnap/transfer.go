package poolsnap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/xapi"
	"xenkeep/xva"
)

// Exported is the result of exporting a whole VM.
type Exported struct {
	Type     string   `json:"type"` // "exported_vm"
	UUID     string   `json:"uuid"` // of the VM, snapshot or template
	Name     string   `json:"name"`
	File     string   `json:"file"` // "-" is stdout
	Bytes    int64    `json:"bytes"`
	Disks    int      `json:"disks"`
	Size     int64    `json:"size"`     // bytes of the disks
	Compress string   `json:"compress"` // as the pool sent it: "", gzip, zstd
	Memory   bool     `json:"memory"`   // the archive contains a memory image
	Warnings []string `json:"warnings"`
}

// ExportOptions are the options of exporting a whole VM.
type ExportOptions struct {
	File     string // "-" writes to Stdout
	Stdout   io.Writer
	Force    bool // replace an existing file
	Compress string
	Memory   bool
	Progress job.Progress
}

// ExportSnapshot exports a VM snapshot to an XVA archive, which becomes a template
// when it is imported.
func ExportSnapshot(ctx context.Context, c *xapi.Client, name string, o ExportOptions) (*Exported, error) {
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := w.snapshot(name)
	if err != nil {
		return nil, err
	}
	return w.export(ctx, c, v, o)
}

// ExportVM exports a halted or suspended VM to an XVA archive.
func ExportVM(ctx context.Context, c *xapi.Client, name string, o ExportOptions) (*Exported, error) {
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := w.vm(name)
	if err != nil {
		return nil, err
	}
	if v.PowerState != "Halted" && v.PowerState != "Suspended" {
		return nil, advise("take a snapshot and export that: xenkeep pool snapshot create, xenkeep pool snapshot export",
			"VM %s: %w", v.NameLabel, &xapi.Error{Code: xapi.VMBadPowerState, Params: []string{v.UUID, "halted, suspended", v.PowerState}})
	}
	return w.export(ctx, c, v, o)
}

func (w *world) export(ctx context.Context, c *xapi.Client, v *xapi.VM, o ExportOptions) (*Exported, error) {
	if o.Memory && v.SuspendVDI.IsNull() {
		return nil, fmt.Errorf("%s %s: it holds no memory: %w", kindOf(v), v.NameLabel, ErrValue)
	}
	e := &Exported{Type: "exported_vm", UUID: v.UUID, Name: v.NameLabel, File: o.File, Warnings: []string{}}
	if o.File == "-" {
		return e, transfer(ctx, c, v, o, o.Stdout, e)
	}
	if _, err := os.Stat(o.File); err == nil && !o.Force {
		return nil, advise("--force replaces it", "file %s: %w", o.File, job.ErrExists)
	}
	f, err := os.CreateTemp(filepath.Dir(o.File), "."+filepath.Base(o.File)+".part-*")
	if err != nil {
		return nil, err
	}
	// An incomplete file never has the final name.
	err = transfer(ctx, c, v, o, f, e)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = place(f.Name(), o)
	}
	if err != nil {
		return nil, errors.Join(err, dropped(f.Name()))
	}
	return e, nil
}

func dropped(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// place renames the file to its final name.
func place(part string, o ExportOptions) error {
	if err := os.Chmod(part, 0o600); err != nil { // only the user may read a VM's disks
		return err
	}
	if !o.Force {
		if err := os.Link(part, o.File); err == nil {
			return os.Remove(part)
		} else if errors.Is(err, os.ErrExist) {
			return advise("--force replaces it", "file %s: %w", o.File, job.ErrExists)
		}
		// The file system does not support links.
	}
	if err := os.Rename(part, o.File); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(o.File))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// transfer copies an export to w and verifies it meanwhile: each block with its
// checksum, each disk and the archive to their ends.
func transfer(ctx context.Context, c *xapi.Client, v *xapi.VM, o ExportOptions, w io.Writer, e *Exported) error {
	x, err := c.ExportVM(ctx, xapi.ExportVMOptions{VM: v.Ref, Compress: o.Compress, Memory: o.Memory})
	if err != nil {
		return err
	}
	defer x.Close(ctx)
	meter := o.Progress.Begin(v.NameLabel, 0)
	defer meter.Done()
	proof := newProof(ctx)
	buf := make([]byte, 1<<20)
	var head []byte
	for {
		n, rerr := x.Read(buf)
		if n > 0 {
			if len(head) < 4 {
				head = append(head, buf[:min(n, 4)]...)
			}
			// The error is returned together with the pool's own.
			_, _ = proof.Write(buf[:n])
			if _, err := w.Write(buf[:n]); err != nil {
				proof.stop(err)
				return fmt.Errorf("write %s: %w", o.File, err)
			}
			e.Bytes += int64(n)
			meter.Add(int64(n))
		}
		if rerr != nil {
			break
		}
	}
	seen, bad := proof.end()
	if err := x.Finish(ctx); err != nil { // the pool's error contains the reason
		return fmt.Errorf("export %s: %w", v.NameLabel, err)
	}
	if bad != nil {
		return fmt.Errorf("export %s: the archive is not complete: %w", v.NameLabel, bad)
	}
	e.Disks, e.Size, e.Memory = seen.disks, seen.size, seen.memory
	switch {
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		e.Compress = xapi.CompressZstd
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		e.Compress = xapi.CompressGzip
	}
	if e.Compress != o.Compress {
		e.Warnings = append(e.Warnings, fmt.Sprintf("the host does not support %s: the archive is not compressed", o.Compress))
	}
	return nil
}

// proof verifies an archive that is written to it.
type proof struct {
	w    *io.PipeWriter
	over chan struct{}
	seen contents
	err  error
}

// contents describes the content of an archive.
type contents struct {
	disks  int
	size   int64
	memory bool
	name   string
	uuid   string
}

// newProof starts the verification.
//
// Pipeline: Write passes the archive through an unbuffered pipe to one goroutine, which
// reads it; nothing else is buffered. After an error of the reader, Write returns it.
// stop or end closes the pipe's writer and waits for the goroutine, which closes over.
func newProof(ctx context.Context) *proof {
	r, w := io.Pipe()
	p := &proof{w: w, over: make(chan struct{})}
	go func() {
		defer close(p.over)
		p.seen, p.err = readAll(ctx, r)
		_ = r.CloseWithError(p.err)
	}()
	return p
}

// Write adds a part of the archive; an error means that the archive is damaged.
func (p *proof) Write(b []byte) (int, error) { return p.w.Write(b) }

func (p *proof) stop(err error) {
	_ = p.w.CloseWithError(err)
	<-p.over
}

// end returns the result for the complete archive.
func (p *proof) end() (contents, error) {
	_ = p.w.Close()
	<-p.over
	return p.seen, p.err
}

// readAll reads an archive to its end.
func readAll(ctx context.Context, r io.Reader) (c contents, err error) {
	x, err := xva.NewReader(r)
	if err != nil {
		return c, err
	}
	defer x.Close()
	if vm := x.OVA().VM(""); vm != nil {
		c.name, c.uuid = vm.Record.Get("name_label").Text, vm.Record.Get("uuid").Text
	}
	buf := make([]byte, disk.BlockSize)
	for {
		d, err := x.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c, err
		}
		if d.Disk().VDI.Get("type").Text == "suspend" {
			c.memory = true
		} else {
			c.disks++
			c.size += d.Size()
		}
		for {
			if _, err := d.Next(ctx, buf); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

// ImportOptions are the options of Import.
type ImportOptions struct {
	SR       string // name or UUID; "" is the pool's default
	Preserve bool   // keep UUID and MACs; refused if a VM with that UUID exists
	Progress job.Progress
}

// Imported is the result of an import.
type Imported struct {
	Type string `json:"type"` // "imported"
	File string `json:"file"`
	VMs  []Made `json:"vms"`
}

// Import creates a VM or a template from an XVA archive. The archive is verified while
// it is sent, and its last part is sent only after everything before it was verified,
// so that a damaged file leaves nothing on the pool.
func Import(ctx context.Context, c *xapi.Client, file string, o ImportOptions) (*Imported, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("file %s: not a regular file, and the pool needs its length: %w", file, ErrValue)
	}
	opts := xapi.ImportVMOptions{Preserve: o.Preserve, ContentLength: info.Size()}
	if o.SR != "" {
		sr, err := c.FindSR(ctx, o.SR)
		if err != nil {
			return nil, err
		}
		opts.SR = sr.Ref
	}
	// The pool is not contacted for a file that is no archive.
	head, err := xva.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("file %s: %w", file, err)
	}
	head.Close()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	meter := o.Progress.Begin(filepath.Base(file), info.Size())
	defer meter.Done()
	refs, err := c.ImportVM(ctx, opts, func(w io.Writer) error { return send(ctx, w, f, meter) })
	if err != nil {
		return nil, fmt.Errorf("file %s: %w", file, err)
	}
	im := &Imported{Type: "imported", File: file, VMs: []Made{}}
	for _, ref := range refs {
		m, err := made(ctx, c, ref, "")
		if err != nil {
			return im, err
		}
		im.VMs = append(im.VMs, *m)
	}
	return im, nil
}

// send writes an archive to the pool, its last part after everything was verified.
func send(ctx context.Context, w io.Writer, r io.Reader, meter job.Meter) error {
	p := newProof(ctx)
	var held []byte
	spare := make([]byte, 1<<20)
	for {
		n, rerr := io.ReadFull(r, spare)
		if n > 0 {
			if _, err := p.Write(spare[:n]); err != nil {
				p.stop(err)
				return err
			}
			if _, err := w.Write(held); err != nil {
				p.stop(err)
				return err
			}
			meter.Add(int64(len(held)))
			held, spare = spare[:n], held[:cap(held)]
			if len(spare) == 0 {
				spare = make([]byte, 1<<20)
			}
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break
		}
		if rerr != nil {
			p.stop(rerr)
			return rerr
		}
	}
	if _, err := p.end(); err != nil {
		return err
	}
	_, err := w.Write(held)
	meter.Add(int64(len(held)))
	return err
}
