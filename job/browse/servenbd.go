package browse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/job/records"
	"xenkeep/nbd"
	"xenkeep/repo"
	"xenkeep/repo/view"
)

// NBDOptions are the options of ServeNBD.
type NBDOptions struct {
	// Snapshot selects a snapshot whose disks are served, by their devices, and Disk
	// one of its disks; nil: all snapshots are served, as ID/DEVICE or
	// latest:VM/DEVICE.
	Snapshot *repo.Snapshot
	Disk     string
	// TLS, unless nil, is required of every client.
	TLS   *tls.Config
	Cache int64             // bytes; 0 for view.DefaultCache
	Log   func(text string) // called for connections that ended with an error; may be nil
}

// nbdClients is the maximum number of concurrent connections.
const nbdClients = 64

// ServeNBD serves disks of snapshots, read-only, to the clients of l until ctx ends,
// and returns ctx's error. It closes l.
func ServeNBD(ctx context.Context, r *repo.Repository, l net.Listener, o NBDOptions) error {
	v := view.New(r, view.Options{Cache: o.Cache})
	defer v.Close()
	x := &nbdServer{r: r, v: v, o: o}
	p := nbd.Modern()
	p.TLS, p.ForceTLS = o.TLS, o.TLS != nil
	s := &nbd.Server{
		Open: x.open, List: x.list, MaxConnections: nbdClients,
		Profile: func(context.Context, net.Conn) nbd.Profile { return p },
		Ended: func(remote net.Addr, err error) {
			if err != nil && o.Log != nil && ctx.Err() == nil {
				o.Log(fmt.Sprintf("client %v: %v", remote, err))
			}
		},
	}
	if err := s.Serve(ctx, l); ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

type nbdServer struct {
	r *repo.Repository
	v *view.View
	o NBDOptions
}

// findDisk returns the disk for the name of an export.
func (x *nbdServer) findDisk(ctx context.Context, name string) (*repo.Disk, error) {
	s, disk := x.o.Snapshot, name
	if s == nil {
		i := strings.LastIndex(name, "/")
		if i < 0 {
			return nil, fmt.Errorf("%q: want SNAPSHOT/DISK: %w", name, repo.ErrNoSnapshot)
		}
		all, _, err := x.r.Snapshots(ctx)
		if err != nil {
			return nil, err
		}
		if s, err = repo.Resolve(all, name[:i]); err != nil {
			return nil, err
		}
		if err := x.r.LoadIndex(ctx); err != nil { // the index may have grown since it was loaded
			return nil, err
		}
		disk = name[i+1:]
	}
	if x.o.Disk != "" {
		only, err := s.Disk(x.o.Disk)
		if err != nil || disk == "" {
			return only, err
		}
		if d, err := s.Disk(disk); err != nil || d != only {
			return nil, fmt.Errorf("disk %q is not served: %w", disk, repo.ErrNoDisk)
		}
		return only, nil
	}
	return records.FindDisk(s, disk)
}

func (x *nbdServer) open(ctx context.Context, name string) (nbd.Export, error) {
	d, err := x.findDisk(ctx, name)
	if errors.Is(err, repo.ErrNoSnapshot) || errors.Is(err, repo.ErrNoDisk) || errors.Is(err, repo.ErrAmbiguous) {
		return nil, fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	r, err := x.v.Open(ctx, chunk.ID(d.Root))
	if err != nil {
		return nil, err
	}
	return &nbdExport{r}, nil
}

// list returns the names of the exports, newest first.
func (x *nbdServer) list(ctx context.Context) ([]nbd.Listed, error) {
	var out []nbd.Listed
	add := func(s *repo.Snapshot, prefix string) {
		for i := range s.Disks {
			d := &s.Disks[i]
			if only, err := s.Disk(x.o.Disk); x.o.Disk == "" || err == nil && only == d {
				out = append(out, nbd.Listed{Name: prefix + d.Device, Description: fmt.Sprintf("%s of %s", s.VM.Name, s.DataTime.Local().Format("2006-01-02 15:04:05"))})
			}
		}
	}
	if x.o.Snapshot != nil {
		add(x.o.Snapshot, "")
		return out, nil
	}
	all, _, err := x.r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range slices.Backward(all) {
		add(s, s.Short()+"/")
	}
	return out, nil
}

// nbdExport is one disk.
type nbdExport struct{ d *view.Disk }

func (e *nbdExport) Size() int64 { return e.d.Size() }

// ReadAt ends when the View is closed, at the latest.
func (e *nbdExport) ReadAt(p []byte, off int64) (int, error) {
	if err := e.d.ReadAt(context.Background(), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// extentLists is the number of block lists that are read for one request: those of 4
// GiB, the maximum length of a request.
const extentLists = 2048

// Extents distinguishes holes and data, by the tree alone.
func (e *nbdExport) Extents(off, length int64) ([]nbd.Extent, error) {
	all, err := e.d.Extents(context.Background(), off, length, extentLists)
	if err != nil {
		return nil, err
	}
	out := make([]nbd.Extent, 0, len(all))
	for _, x := range all {
		out = append(out, nbd.Extent{Extent: x.Extent, Hole: x.Zero, Zero: x.Zero})
	}
	return out, nil
}
