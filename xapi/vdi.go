package xapi

import "context"

// VDIFields describes the disk that CreateVDI creates. Size is in bytes; the SR
// may round it up, so the disk may be larger than requested, never smaller.
type VDIFields struct {
	Name        string
	Description string
	SR          Ref
	Size        int64
	Type        string // "user" if empty
	Sharable    bool
	OtherConfig map[string]string
	SMConfig    map[string]string
	Tags        []string
}

// CreateVDI creates an empty disk. The content of an empty disk depends on the
// SR: VHD-backed disks read as zeros, raw volumes contain whatever was stored
// there before.
func (c *Client) CreateVDI(ctx context.Context, f VDIFields) (Ref, error) {
	kind := f.Type
	if kind == "" {
		kind = "user"
	}
	return c.asyncRef(ctx, "VDI.create", map[string]any{
		"name_label": f.Name, "name_description": f.Description, "SR": f.SR,
		"virtual_size": f.Size, "type": kind, "sharable": f.Sharable, "read_only": false,
		"other_config": notNil(f.OtherConfig), "xenstore_data": map[string]string{},
		"sm_config": notNil(f.SMConfig), "tags": noNils(f.Tags),
	})
}

// SnapshotVDI takes a VDI snapshot of one disk.
func (c *Client) SnapshotVDI(ctx context.Context, vdi Ref) (Ref, error) {
	return c.asyncRef(ctx, "VDI.snapshot", vdi, map[string]string{})
}

// DestroyVDI deletes a disk and its data. It waits while the disk is in use,
// for example for some seconds after an export. It succeeds if the disk no
// longer exists.
func (c *Client) DestroyVDI(ctx context.Context, vdi Ref) error {
	return gone(c.Retry(ctx, func(ctx context.Context) error {
		_, err := c.Async(ctx, "VDI.destroy", vdi)
		return err
	}))
}

// ScanSR makes the pool read the content of an SR again.
func (c *Client) ScanSR(ctx context.Context, sr Ref) error {
	_, err := c.Async(ctx, "SR.scan", sr)
	return err
}
