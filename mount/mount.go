// Package mount shows the snapshots of a repository as files, read-only,
// through FUSE:
//
//	VM/2026-03-16T12-30-27/xvda.raw     the disk
//	                       xvda.vhd     the same as a dynamic VHD
//	                       xvda1.raw    a partition of it
//	                       vg-root.raw  a logical volume
//	VM/latest -> 2026-03-16T12-30-27
//
// Data are read only on request. One cache of a bounded size (repo/view) keeps
// them, and it reads ahead for sequential readers.
package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
	"unicode"

	"xenkeep/internal/child"
	"xenkeep/repo"
	"xenkeep/repo/view"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Options define how a repository is shown.
type Options struct {
	// Cache is the size of the cache in bytes; 0 for view.DefaultCache.
	Cache int64
	// AllowOther lets all users of the machine read the files; otherwise only
	// the mounting user can read them, not even root.
	AllowOther bool
	// VM restricts the mount to this VM, by name or UUID.
	VM string
	// Ready, if set, is called once the mount is complete.
	Ready func()
	// Log, if set, is called with each problem, as one line; several goroutines
	// may call it concurrently.
	Log func(text string)
	// Location is the time zone of the folders' names; nil for the local one.
	Location *time.Location
}

// ErrFUSE is returned if the machine cannot mount through FUSE.
var ErrFUSE = errors.New("cannot mount through FUSE")

// Serve mounts the repository on a folder, which must be empty, and serves it
// until it is unmounted (fusermount3 -u), after which it returns nil, or until
// ctx ends, in which case it unmounts the folder itself. If programs are still
// using the mount at that time, it is detached, and Serve returns after they
// have finished.
func Serve(ctx context.Context, r *repo.Repository, dir string, o Options) error {
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if o.Location == nil {
		o.Location = time.Local
	}
	names, err := os.ReadDir(dir)
	switch {
	case err != nil:
		return err
	case len(names) > 0:
		return fmt.Errorf("%s: is not empty: mount on an empty folder", dir)
	}
	v := view.New(r, view.Options{Cache: o.Cache})
	defer v.Close()
	t := &tree{r: r, v: v, o: o, uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
	if err := t.refresh(ctx); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("%w: no /dev/fuse (modprobe fuse; in a container it must be passed in)", ErrFUSE)
	}
	options := []string{"ro", "default_permissions"}
	timeout := time.Second
	server, err := fs.Mount(dir, &folder{t: t, list: t.vms, at: time.Now()}, &fs.Options{
		AttrTimeout: &timeout, EntryTimeout: &timeout,
		MountOptions: fuse.MountOptions{
			AllowOther: o.AllowOther, Options: options, FsName: "xenkeep", Name: "xenkeep",
			MaxReadAhead: 1 << 20, MaxBackground: 32, DisableXAttrs: true,
		},
	})
	if err != nil {
		return fmt.Errorf("%w: %v (is fusermount3 installed, Debian package fuse3? --allow-other needs user_allow_other in /etc/fuse.conf)", ErrFUSE, err)
	}
	if o.Ready != nil {
		o.Ready()
	}
	done := make(chan struct{})
	go func() {
		server.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	if err := server.Unmount(); err != nil {
		o.Log(fmt.Sprintf("%s is still in use: detached; this ends with its last user, or at the next interrupt", dir))
		unmount := exec.Command("fusermount3", "-u", "-z", dir)
		unmount.Env = child.Env()
		if out, derr := unmount.CombinedOutput(); derr != nil {
			return fmt.Errorf("unmount %s: %w: %s", dir, err, strings.TrimSpace(string(out)))
		}
	}
	<-done
	return context.Cause(ctx)
}

// refreshAfter is how long a list of snapshots is used before it is read again.
const refreshAfter = 30 * time.Second

// tree is the mounted file tree.
type tree struct {
	r        *repo.Repository
	v        *view.View
	o        Options
	uid, gid uint32

	mu    sync.Mutex
	read  time.Time
	all   []*repo.Snapshot
	names map[string][]*repo.Snapshot // by the folder of their VM
	order []string
}

// refresh reads the list of snapshots again if it is old.
func (t *tree) refresh(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.read.IsZero() {
		if time.Since(t.read) < refreshAfter {
			return nil
		}
		if err := t.r.LoadIndex(ctx); err != nil {
			return err
		}
	}
	all, bad, err := t.r.Snapshots(ctx)
	if err != nil {
		return err
	}
	if t.read.IsZero() {
		for _, p := range bad {
			t.o.Log(fmt.Sprintf("damage: %v", p.Err))
		}
	}
	t.read, t.all = time.Now(), all
	t.names, t.order = folders(all, t.o.VM)
	if t.o.VM != "" && len(t.order) == 0 {
		return fmt.Errorf("VM %q: %w", t.o.VM, repo.ErrNoSnapshot)
	}
	return nil
}

// folders assigns a folder of its own to each VM.
func folders(all []*repo.Snapshot, only string) (map[string][]*repo.Snapshot, []string) {
	type vm struct{ origin, pool, uuid string }
	byVM := make(map[vm][]*repo.Snapshot)
	var order []vm
	for _, s := range all {
		if only != "" && s.VM.Name != only && s.VM.UUID != only {
			continue
		}
		k := vm{s.Origin, s.Pool.UUID, s.VM.UUID}
		if byVM[k] == nil {
			order = append(order, k)
		}
		byVM[k] = append(byVM[k], s)
	}
	last := func(k vm) string { return fileName(byVM[k][len(byVM[k])-1].VM.Name) }
	used := make(map[string]int)
	for _, k := range order {
		used[last(k)]++
	}
	out := make(map[string][]*repo.Snapshot)
	var names []string
	for _, k := range order {
		name := last(k)
		if used[name] > 1 {
			name = fmt.Sprintf("%s (%s)", name, fileName(k.uuid))
		}
		for i := 2; out[name] != nil; i++ {
			name = fmt.Sprintf("%s %d", last(k), i)
		}
		out[name] = byVM[k]
		names = append(names, name)
	}
	return out, names
}

// fileName converts any text to a valid file name, which cannot control the
// terminal of a user who lists the folder, and whose characters are all visible.
func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '/' || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '_'
		}
		return r
	}, s)
	if s == "" || s[0] == '.' {
		s = "_" + s
	}
	for len(s) > 200 {
		s = s[:len(s)-1]
	}
	return strings.ToValidUTF8(s, "_")
}
