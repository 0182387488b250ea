package job

import (
	"context"
	"encoding/json"
	"fmt"

	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// Names of a snapshot's metadata blobs.
const (
	RecordsName  = "records.json" // the XAPI records, see vmInfo
	MetadataName = "metadata.xva" // what the pool's /export_metadata gave: a tar with ova.xml
)

// rawRecord is a record as the pool sent it.
type rawRecord json.RawMessage

// MarshalJSON gives the record as it is.
func (r rawRecord) MarshalJSON() ([]byte, error) {
	if len(r) == 0 {
		return []byte("null"), nil
	}
	return r, nil
}

// UnmarshalJSON keeps the record as it is.
func (r *rawRecord) UnmarshalJSON(p []byte) error {
	*r = append((*r)[:0], p...)
	return nil
}

// storedVM is a VM as a snapshot remembers it.
type storedVM struct {
	vm       xapi.VM
	vbds     map[xapi.Ref]xapi.VBD
	vdis     map[xapi.Ref]xapi.VDI
	vifs     map[xapi.Ref]xapi.VIF
	networks map[xapi.Ref]xapi.Network
}

// readVM reads the records of a snapshot's VM.
func readVM(ctx context.Context, r *repo.Repository, s *repo.Snapshot) (*storedVM, error) {
	p, err := r.ReadRecord(ctx, s, RecordsName)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("snapshot %s holds no VM, only disks: restore those", s.Short())
	}
	var info vmInfo
	if err := json.Unmarshal(p, &info); err != nil {
		return nil, fmt.Errorf("snapshot %s: %s: %v: %w", s.Short(), RecordsName, err, seal.ErrCorrupt)
	}
	v := &storedVM{
		vbds: map[xapi.Ref]xapi.VBD{}, vdis: map[xapi.Ref]xapi.VDI{},
		vifs: map[xapi.Ref]xapi.VIF{}, networks: map[xapi.Ref]xapi.Network{},
	}
	if v.vm, err = xapi.DecodeRecord[xapi.VM]("", info.VM); err != nil {
		return nil, err
	}
	for ref, raw := range info.VBDs {
		if v.vbds[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.VBD](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	for ref, raw := range info.VDIs {
		if v.vdis[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.VDI](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	for ref, raw := range info.VIFs {
		if v.vifs[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.VIF](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	for ref, raw := range info.Networks {
		if v.networks[xapi.Ref(ref)], err = xapi.DecodeRecord[xapi.Network](xapi.Ref(ref), raw); err != nil {
			return nil, err
		}
	}
	return v, nil
}
