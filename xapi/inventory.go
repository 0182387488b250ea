package xapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// record reads one record.
func record[T any, P recordPtr[T]](ctx context.Context, c *Client, class string, ref Ref) (T, error) {
	var raw json.RawMessage
	if err := c.Call(ctx, class+".get_record", &raw, ref); err != nil {
		var zero T
		return zero, err
	}
	r, err := DecodeRecord[T, P](ref, raw)
	if err != nil {
		return r, fmt.Errorf("%s %w", class, err)
	}
	c.names.learn(&r)
	return r, nil
}

// records reads all records of a class, in the order of their references.
func records[T any, P recordPtr[T]](ctx context.Context, c *Client, class string) ([]T, error) {
	var raws map[Ref]json.RawMessage
	if err := c.Call(ctx, class+".get_all_records", &raws); err != nil {
		return nil, err
	}
	refs := make([]Ref, 0, len(raws))
	for ref := range raws {
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	list := make([]T, 0, len(refs))
	for _, ref := range refs {
		r, err := DecodeRecord[T, P](ref, raws[ref])
		if err != nil {
			return nil, fmt.Errorf("%s %w", class, err)
		}
		c.names.learn(&r)
		list = append(list, r)
	}
	return list, nil
}

// named reads the records whose UUID is nameOrUUID or, if there is none, those
// with that name.
func named[T any, P recordPtr[T]](ctx context.Context, c *Client, class, nameOrUUID string) ([]T, error) {
	var refs []Ref
	if looksLikeUUID(nameOrUUID) {
		var ref Ref
		err := c.Call(ctx, class+".get_by_uuid", &ref, strings.ToLower(nameOrUUID)) // the pool's UUIDs are lower-case
		if err == nil {
			refs = []Ref{ref}
		} else if !IsCode(err, UUIDInvalid, HandleInvalid) {
			return nil, err
		}
	}
	if refs == nil {
		if err := c.Call(ctx, class+".get_by_name_label", &refs, nameOrUUID); err != nil {
			return nil, err
		}
	}
	slices.Sort(refs)
	var list []T
	for _, ref := range refs {
		r, err := record[T, P](ctx, c, class, ref)
		if IsCode(err, HandleInvalid) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

func looksLikeUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (r == '-') {
			return false
		}
		if r != '-' && !strings.ContainsRune("0123456789abcdefABCDEF", r) {
			return false
		}
	}
	return true
}

// only returns the single record of a list, or else an error that lists the
// candidates.
func only[T any](list []T, class, name string, uuid func(*T) string) (T, error) {
	var zero T
	switch len(list) {
	case 0:
		return zero, fmt.Errorf("%s %q: %w", class, name, ErrNotFound)
	case 1:
		return list[0], nil
	}
	e := &AmbiguousError{Class: class, Name: name}
	for i := range list {
		e.UUIDs = append(e.UUIDs, uuid(&list[i]))
	}
	return zero, e
}

// FindVM returns the only real VM (see VM.Real) with that UUID or name.
// Templates and snapshots share names with VMs and are ignored; if nothing else
// matches, the error, which is ErrNotFound, mentions them. If several VMs have
// the name, it returns an *AmbiguousError.
func (c *Client) FindVM(ctx context.Context, nameOrUUID string) (VM, error) {
	all, err := named[VM](ctx, c, "VM", nameOrUUID)
	if err != nil {
		return VM{}, err
	}
	var list []VM
	for _, vm := range all {
		if vm.Real() {
			list = append(list, vm)
		}
	}
	if len(list) == 0 && len(all) > 0 {
		kind := "template"
		switch {
		case all[0].IsASnapshot:
			kind = "VM snapshot"
		case all[0].IsControlDomain:
			kind = "control domain"
		}
		return VM{}, fmt.Errorf("VM %q: only a %s (%s) is called that: %w", nameOrUUID, kind, all[0].UUID, ErrNotFound)
	}
	return only(list, "VM", nameOrUUID, func(v *VM) string { return v.UUID })
}

// FindSR returns the only storage repository with that UUID or name.
func (c *Client) FindSR(ctx context.Context, nameOrUUID string) (SR, error) {
	list, err := named[SR](ctx, c, "SR", nameOrUUID)
	if err != nil {
		return SR{}, err
	}
	return only(list, "SR", nameOrUUID, func(s *SR) string { return s.UUID })
}

// FindNetwork returns the only network with that UUID or name.
func (c *Client) FindNetwork(ctx context.Context, nameOrUUID string) (Network, error) {
	list, err := named[Network](ctx, c, "network", nameOrUUID)
	if err != nil {
		return Network{}, err
	}
	return only(list, "network", nameOrUUID, func(n *Network) string { return n.UUID })
}

// FindVDI returns the only disk with that UUID or name. Snapshots of disks have
// the names of their disks, so callers should prefer the UUID.
func (c *Client) FindVDI(ctx context.Context, nameOrUUID string) (VDI, error) {
	list, err := named[VDI](ctx, c, "VDI", nameOrUUID)
	if err != nil {
		return VDI{}, err
	}
	return only(list, "VDI", nameOrUUID, func(v *VDI) string { return v.UUID })
}

// VDIByUUID returns the reference of a disk, or ErrNotFound if there is none.
func (c *Client) VDIByUUID(ctx context.Context, uuid string) (Ref, error) {
	var ref Ref
	err := c.Call(ctx, "VDI.get_by_uuid", &ref, uuid)
	if IsCode(err, UUIDInvalid, HandleInvalid) {
		return "", fmt.Errorf("VDI %s: %w", uuid, ErrNotFound)
	}
	return ref, err
}

// VMs reads all VM records: VMs, templates, snapshots and control domains.
func (c *Client) VMs(ctx context.Context) ([]VM, error) { return records[VM](ctx, c, "VM") }

// VM reads one VM record.
func (c *Client) VM(ctx context.Context, ref Ref) (VM, error) { return record[VM](ctx, c, "VM", ref) }

// VDIs reads all VDI records, including internal ones of the storage drivers
// (for which Managed is false).
func (c *Client) VDIs(ctx context.Context) ([]VDI, error) { return records[VDI](ctx, c, "VDI") }

// VDI reads one VDI record.
func (c *Client) VDI(ctx context.Context, ref Ref) (VDI, error) {
	return record[VDI](ctx, c, "VDI", ref)
}

// VBDs reads all VBD records.
func (c *Client) VBDs(ctx context.Context) ([]VBD, error) { return records[VBD](ctx, c, "VBD") }

// VBD reads one VBD record.
func (c *Client) VBD(ctx context.Context, ref Ref) (VBD, error) {
	return record[VBD](ctx, c, "VBD", ref)
}

// VIF reads one VIF record.
func (c *Client) VIF(ctx context.Context, ref Ref) (VIF, error) {
	return record[VIF](ctx, c, "VIF", ref)
}

// UUIDs returns the UUIDs of all objects of a class, keyed by their references.
// The result is empty for a class that the pool's version does not have.
func (c *Client) UUIDs(ctx context.Context, class string) (map[Ref]string, error) {
	var all map[Ref]struct {
		UUID string `json:"uuid"`
	}
	if err := c.Call(ctx, class+".get_all_records", &all); err != nil && !IsCode(err, MethodUnknown, MessageRemoved) {
		return nil, err
	}
	out := make(map[Ref]string, len(all))
	for ref, o := range all {
		out[ref] = o.UUID
	}
	return out, nil
}

// VIFs reads the records of all network interfaces.
func (c *Client) VIFs(ctx context.Context) ([]VIF, error) { return records[VIF](ctx, c, "VIF") }

// SRs reads all SR records.
func (c *Client) SRs(ctx context.Context) ([]SR, error) { return records[SR](ctx, c, "SR") }

// SR reads one SR record.
func (c *Client) SR(ctx context.Context, ref Ref) (SR, error) { return record[SR](ctx, c, "SR", ref) }

// PBDs reads all PBD records.
func (c *Client) PBDs(ctx context.Context) ([]PBD, error) { return records[PBD](ctx, c, "PBD") }

// Networks reads all network records.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return records[Network](ctx, c, "network")
}

// Network reads one network record.
func (c *Client) Network(ctx context.Context, ref Ref) (Network, error) {
	return record[Network](ctx, c, "network", ref)
}

// PIFs reads all PIF records.
func (c *Client) PIFs(ctx context.Context) ([]PIF, error) { return records[PIF](ctx, c, "PIF") }

// Hosts reads all host records.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) { return records[Host](ctx, c, "host") }

// Host reads one host record.
func (c *Client) Host(ctx context.Context, ref Ref) (Host, error) {
	return record[Host](ctx, c, "host", ref)
}

// HostMetrics reads the metrics of all hosts.
func (c *Client) HostMetrics(ctx context.Context) ([]HostMetrics, error) {
	return records[HostMetrics](ctx, c, "host_metrics")
}

// SMs reads the records of all storage drivers.
func (c *Client) SMs(ctx context.Context) ([]SM, error) { return records[SM](ctx, c, "SM") }

// VMGuestMetrics reads the data reported by the tools in a guest.
func (c *Client) VMGuestMetrics(ctx context.Context, ref Ref) (VMGuestMetrics, error) {
	return record[VMGuestMetrics](ctx, c, "VM_guest_metrics", ref)
}

// Certificates reads the records of all certificates. Hosts before 8.2 have
// none and answer MethodUnknown.
func (c *Client) Certificates(ctx context.Context) ([]Certificate, error) {
	return records[Certificate](ctx, c, "Certificate")
}

// Pool reads the pool's record.
func (c *Client) Pool(ctx context.Context) (Pool, error) {
	list, err := records[Pool](ctx, c, "pool")
	if err != nil {
		return Pool{}, err
	}
	if len(list) != 1 {
		return Pool{}, fmt.Errorf("pool: %d records where there should be one", len(list))
	}
	return list[0], nil
}

// ServerTime returns the clock of a host. The pool's dates are set by it.
func (c *Client) ServerTime(ctx context.Context, host Ref) (Time, error) {
	var t Time
	err := c.Call(ctx, "host.get_servertime", &t, host)
	return t, err
}

// HostsFor lists the hosts that can currently read and write the disks of an
// SR: those that are alive and have the SR plugged. If the pool's master is one
// of them, it comes first.
func (c *Client) HostsFor(ctx context.Context, sr Ref) ([]Host, error) {
	pbds, err := c.PBDs(ctx)
	if err != nil {
		return nil, err
	}
	metrics, err := c.HostMetrics(ctx)
	if err != nil {
		return nil, err
	}
	hosts, err := c.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := c.Pool(ctx)
	if err != nil {
		return nil, err
	}
	live, plugged := make(map[Ref]bool), make(map[Ref]bool)
	for _, m := range metrics {
		live[m.Ref] = m.Live
	}
	for _, p := range pbds {
		if p.SR == sr && p.CurrentlyAttached {
			plugged[p.Host] = true
		}
	}
	var list []Host
	for _, h := range hosts {
		switch {
		case !plugged[h.Ref] || !live[h.Metrics]:
		case h.Ref == pool.Master:
			list = slices.Insert(list, 0, h)
		default:
			list = append(list, h)
		}
	}
	if len(list) == 0 {
		return nil, c.named(&Error{Code: NoHostsAvailable, Params: []string{string(sr)}})
	}
	return list, nil
}
