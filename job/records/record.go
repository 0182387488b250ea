package records

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xva"
)

// BuildOVA returns an ova.xml for the records that a backup stored in p.
func BuildOVA(s *repo.Snapshot, p []byte) (*xva.OVA, error) {
	bad := func(err error) error {
		return fmt.Errorf("snapshot %s: %s: %v: %w", s.Short(), RecordsName, err, seal.ErrCorrupt)
	}
	var info VMInfo
	if err := json.Unmarshal(p, &info); err != nil {
		return nil, bad(err)
	}
	o := &xva.OVA{Version: xva.Plain("", "", nil).Version}
	add := func(class, id string, raw RawRecord) error {
		if len(raw) == 0 || string(raw) == "null" {
			return nil
		}
		rec, err := xva.FromJSON(raw)
		if err != nil {
			return err
		}
		o.Objects = append(o.Objects, xva.Object{Class: class, ID: id, Record: rec})
		return nil
	}
	// The record of a VM does not contain its own reference; its devices do.
	self := "OpaqueRef:vm"
	for _, raw := range info.VBDs {
		if v, err := xva.FromJSON(raw); err == nil {
			self = v.Get("VM").Text
		}
	}
	if err := add("VM", self, info.VM); err != nil {
		return nil, bad(err)
	}
	for _, c := range []struct {
		class string
		all   map[string]RawRecord
	}{{"VBD", info.VBDs}, {"VIF", info.VIFs}, {"network", info.Networks}, {"VDI", info.VDIs}, {"SR", info.SRs}} {
		for _, id := range slices.Sorted(maps.Keys(c.all)) {
			if err := add(c.class, id, c.all[id]); err != nil {
				return nil, bad(err)
			}
		}
	}
	return o.Renamed(), nil
}

// MemoryDevice is the device name of the disk that holds a checkpoint's memory.
const MemoryDevice = "suspend"

// VMInfo holds the records that a backup stores in addition to the disks.
type VMInfo struct {
	VM           RawRecord            `json:"vm"`
	VBDs         map[string]RawRecord `json:"vbds"`
	VDIs         map[string]RawRecord `json:"vdis"`
	VIFs         map[string]RawRecord `json:"vifs"`
	Networks     map[string]RawRecord `json:"networks"`
	SRs          map[string]RawRecord `json:"srs"`
	GuestMetrics RawRecord            `json:"guest_metrics,omitempty"`
	Pool         RawRecord            `json:"pool"`
	Checkpoint   RawRecord            `json:"checkpoint,omitempty"` // the VM snapshot's own record, if it contains memory
}

// Names of a snapshot's metadata blobs.
const (
	RecordsName  = "records.json" // the XAPI records, a VMInfo
	MetadataName = "metadata.xva" // the answer to /export_metadata: a tar with ova.xml
)

// RawRecord is a record in the form in which the pool sent it.
type RawRecord json.RawMessage

// MarshalJSON returns the record unchanged.
func (r RawRecord) MarshalJSON() ([]byte, error) {
	if len(r) == 0 {
		return []byte("null"), nil
	}
	return r, nil
}

// UnmarshalJSON stores the record unchanged.
func (r *RawRecord) UnmarshalJSON(p []byte) error {
	*r = append((*r)[:0], p...)
	return nil
}

// StoredVM is a VM as recorded in a snapshot.
type StoredVM struct {
	VM       xapi.VM
	VBDs     map[xapi.Ref]xapi.VBD
	VDIs     map[xapi.Ref]xapi.VDI
	VIFs     map[xapi.Ref]xapi.VIF
	Networks map[xapi.Ref]xapi.Network
}

// ReadVM reads the records of a snapshot's VM.
func ReadVM(ctx context.Context, r *repo.Repository, s *repo.Snapshot) (*StoredVM, error) {
	p, err := r.ReadRecord(ctx, s, RecordsName)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("snapshot %s holds no VM, only disks: restore those", s.Short())
	}
	var info VMInfo
	if err := json.Unmarshal(p, &info); err != nil {
		return nil, fmt.Errorf("snapshot %s: %s: %v: %w", s.Short(), RecordsName, err, seal.ErrCorrupt)
	}
	v := &StoredVM{
		VBDs: map[xapi.Ref]xapi.VBD{}, VDIs: map[xapi.Ref]xapi.VDI{},
		VIFs: map[xapi.Ref]xapi.VIF{}, Networks: map[xapi.Ref]xapi.Network{},
	}
	if v.VM, err = xapi.DecodeRecord[xapi.VM]("", info.VM); err != nil {
		return nil, err
	}
	for ref, raw := range info.VBDs {
		if v.VBDs[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.VBD](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	for ref, raw := range info.VDIs {
		if v.VDIs[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.VDI](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	for ref, raw := range info.VIFs {
		if v.VIFs[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.VIF](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	for ref, raw := range info.Networks {
		if v.Networks[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.Network](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	return v, nil
}
