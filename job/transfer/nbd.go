package transfer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"xenkeep/nbd"
	"xenkeep/xapi"
)

// NBDReader is an NBD export as a disk.Reader of the disk's true size.
type NBDReader struct {
	D     *nbd.Disk
	Bytes int64
}

// Size returns the size of the disk in bytes.
func (r NBDReader) Size() int64 { return r.Bytes }

// ReadAt implements disk.Reader.
func (r NBDReader) ReadAt(ctx context.Context, p []byte, off int64) error {
	_, err := r.D.ReadAt(ctx, p, off)
	return err
}

// OpenVDI connects to a VDI over NBD. It sets the address in o.
func OpenVDI(ctx context.Context, pool *xapi.Client, vdi xapi.VDI, o nbd.DiskOptions) (*nbd.Disk, error) {
	endpoints := func(ctx context.Context) ([]nbd.Endpoint, error) {
		infos, err := pool.NBDInfo(ctx, vdi.Ref)
		if err != nil {
			return nil, err
		}
		if len(infos) == 0 {
			return nil, errors.New("no host serves it over NBD")
		}
		var out []nbd.Endpoint
		for _, i := range infos {
			e := nbd.Endpoint{
				Address:    net.JoinHostPort(i.Address, strconv.FormatInt(int64(i.Port), 10)),
				ExportName: i.ExportName, ServerName: i.Subject, Host: i.Cert,
			}
			if i.Cert != "" {
				e.PinnedCertPEM = []byte(i.Cert)
			}
			out = append(out, e)
		}
		return out, nil
	}
	var err error
	if o.Endpoints, err = endpoints(ctx); err != nil {
		return nil, err
	}
	o.Renew, o.Connected = endpoints, pool.TraceNBD
	d, err := nbd.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	if d.Size() < int64(vdi.VirtualSize) {
		return nil, errors.Join(fmt.Errorf("NBD serves %d bytes of a disk of %d", d.Size(), vdi.VirtualSize), d.Close())
	}
	return d, nil
}
