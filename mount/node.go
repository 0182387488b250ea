package mount

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/inspect"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/vhd"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// entry is a name in a folder.
type entry struct {
	name string
	mode uint32 // S_IFDIR, S_IFREG or S_IFLNK
	make func() fs.InodeEmbedder
}

// attributer sets a node's attributes.
type attributer interface {
	attr(ctx context.Context, out *fuse.Attr) syscall.Errno
}

// folder is a folder whose content is determined on request.
type folder struct {
	fs.Inode
	t    *tree
	at   time.Time
	list func(ctx context.Context) ([]entry, error)
}

var (
	_ fs.NodeLookuper   = (*folder)(nil)
	_ fs.NodeReaddirer  = (*folder)(nil)
	_ fs.NodeGetattrer  = (*folder)(nil)
	_ fs.NodeOpener     = (*file)(nil)
	_ fs.NodeReader     = (*file)(nil)
	_ fs.NodeGetattrer  = (*file)(nil)
	_ fs.NodeReadlinker = (*link)(nil)
)

// failed logs why an object is not available.
func (t *tree) failed(ctx context.Context, what string, err error) syscall.Errno {
	if ctx.Err() != nil {
		return syscall.EINTR
	}
	t.o.Log(fmt.Sprintf("%s: %v", what, err))
	return syscall.EIO
}

func (t *tree) own(out *fuse.Attr, mode uint32, at time.Time) {
	if !t.o.AllowOther {
		mode &^= 0o077
	}
	out.Mode, out.Uid, out.Gid, out.Nlink = mode, t.uid, t.gid, 1
	out.SetTimes(&at, &at, &at)
	out.Blksize = 128 << 10
}

func (f *folder) attr(_ context.Context, out *fuse.Attr) syscall.Errno {
	f.t.own(out, syscall.S_IFDIR|0o555, f.at)
	return 0
}

func (f *folder) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return f.attr(ctx, &out.Attr)
}

func (f *folder) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	all, err := f.list(ctx)
	if err != nil {
		return nil, f.t.failed(ctx, "list", err)
	}
	out := make([]fuse.DirEntry, len(all))
	for i, e := range all {
		out[i] = fuse.DirEntry{Name: e.name, Mode: e.mode}
	}
	return fs.NewListDirStream(out), 0
}

func (f *folder) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	all, err := f.list(ctx)
	if err != nil {
		return nil, f.t.failed(ctx, name, err)
	}
	for _, e := range all {
		if e.name != name {
			continue
		}
		child := f.GetChild(name)
		if child == nil {
			child = f.NewInode(ctx, e.make(), fs.StableAttr{Mode: e.mode})
		}
		if errno := child.Operations().(attributer).attr(ctx, &out.Attr); errno != 0 {
			return nil, errno
		}
		return child, 0
	}
	return nil, syscall.ENOENT
}

// vms returns the folders of the VMs.
func (t *tree) vms(ctx context.Context) ([]entry, error) {
	if err := t.refresh(ctx); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []entry
	for _, name := range t.order {
		all := t.names[name]
		out = append(out, entry{name, syscall.S_IFDIR, func() fs.InodeEmbedder {
			return &folder{t: t, at: all[len(all)-1].DataTime, list: func(ctx context.Context) ([]entry, error) { return t.times(ctx, name) }}
		}})
	}
	return out, nil
}

// times returns the folders of a VM's snapshots, and "latest".
func (t *tree) times(ctx context.Context, vm string) ([]entry, error) {
	if err := t.refresh(ctx); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []entry
	used := make(map[string]bool)
	newest := ""
	for _, s := range t.names[vm] {
		name := s.DataTime.In(t.o.Location).Format("2006-01-02T15-04-05")
		if used[name] {
			name += "-" + s.Short()
		}
		used[name] = true
		if s.Complete {
			newest = name
		}
		out = append(out, entry{name, syscall.S_IFDIR, func() fs.InodeEmbedder {
			c := &content{t: t, s: s}
			return &folder{t: t, at: s.DataTime, list: c.entries}
		}})
	}
	if newest != "" {
		out = append(out, entry{"latest", syscall.S_IFLNK, func() fs.InodeEmbedder { return &link{t: t, to: newest} }})
	}
	return out, nil
}

// content is the content of a snapshot; it is determined once.
type content struct {
	t *tree
	s *repo.Snapshot

	mu   sync.Mutex
	done []entry
}

func (c *content) entries(ctx context.Context) ([]entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done != nil {
		return c.done, nil
	}
	var disks []inspect.Disk
	var out []entry
	add := func(name string, size func(ctx context.Context) (disk.Reader, error)) {
		out = append(out, entry{name, syscall.S_IFREG, func() fs.InodeEmbedder {
			return &file{t: c.t, at: c.s.DataTime, name: name, open: size}
		}})
	}
	ready := func(r disk.Reader) func(context.Context) (disk.Reader, error) {
		return func(context.Context) (disk.Reader, error) { return r, nil }
	}
	for i := range c.s.Disks {
		d := &c.s.Disks[i]
		name := fileName(d.Device)
		r, err := c.t.v.Open(ctx, chunk.ID(d.Root))
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: disk %s: %w", c.s.Short(), d.Device, err)
		}
		disks = append(disks, inspect.Disk{Name: name, Reader: r})
		add(name+".raw", ready(r))
		if d.Size <= vhd.MaxSize {
			add(name+".vhd", func(ctx context.Context) (disk.Reader, error) { return c.vhd(ctx, d, r) })
		}
	}
	rep, err := inspect.Disks(ctx, disks)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		c.t.o.Log(fmt.Sprintf("snapshot %s: partitions not found: %v", c.s.Short(), err))
	}
	for _, v := range rep.Volumes {
		if v.Kind != "disk" {
			add(fileName(volumeName(v))+".raw", ready(v.Reader))
		}
	}
	c.done = out
	return out, nil
}

// volumeName returns "xvda1" or "vg-root".
func volumeName(v *inspect.Volume) string {
	b := []byte(v.Name)
	for i := range b {
		if b[i] == '/' {
			b[i] = '-'
		}
	}
	return string(b)
}

// vhd returns a disk as a VHD. It reads the upper part of the disk's tree.
func (c *content) vhd(ctx context.Context, d *repo.Disk, r disk.Reader) (disk.Reader, error) {
	im, err := restore.Open(ctx, c.t.r, chunk.ID(d.Root))
	if err != nil {
		return nil, err
	}
	l := vhd.Layout{Profile: vhd.ForFile, Size: r.Size(), Present: im.Present, Time: vhd.Time(c.s.DataTime), ID: vhd.HashUUID(d.Root)}
	return vhd.NewVirtual(l, r)
}

// file is a disk, or a part of one.
type file struct {
	fs.Inode
	t    *tree
	at   time.Time
	name string
	open func(ctx context.Context) (disk.Reader, error)

	mu sync.Mutex
	r  disk.Reader // set after the first use
}

func (f *file) reader(ctx context.Context) (disk.Reader, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.r == nil {
		r, err := f.open(ctx)
		if err != nil {
			return nil, f.t.failed(ctx, f.name, err)
		}
		f.r = r
	}
	return f.r, 0
}

func (f *file) attr(ctx context.Context, out *fuse.Attr) syscall.Errno {
	r, errno := f.reader(ctx)
	if errno != 0 {
		return errno
	}
	f.t.own(out, syscall.S_IFREG|0o444, f.at)
	out.Size = uint64(r.Size())
	out.Blocks = (out.Size + 511) / 512
	return 0
}

func (f *file) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return f.attr(ctx, &out.Attr)
}

// Open refuses to write. The content never changes: the kernel may keep it.
func (f *file) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (f *file) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	r, errno := f.reader(ctx)
	if errno != 0 {
		return nil, errno
	}
	if off >= r.Size() {
		return fuse.ReadResultData(nil), 0
	}
	dest = dest[:min(int64(len(dest)), r.Size()-off)]
	if err := r.ReadAt(ctx, dest, off); err != nil {
		return nil, f.t.failed(ctx, f.name, err)
	}
	return fuse.ReadResultData(dest), 0
}

// link is the symbolic link "latest".
type link struct {
	fs.Inode
	t  *tree
	to string
}

func (l *link) attr(_ context.Context, out *fuse.Attr) syscall.Errno {
	l.t.own(out, syscall.S_IFLNK|0o777, time.Now())
	out.Size = uint64(len(l.to))
	return 0
}

func (l *link) Readlink(context.Context) ([]byte, syscall.Errno) { return []byte(l.to), 0 }
