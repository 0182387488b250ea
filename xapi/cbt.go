package xapi

import (
	"context"
	"encoding/base64"
	"fmt"
)

// NBDInfo is one address at which a host serves a disk over NBD.
type NBDInfo struct {
	Address    string `json:"address"` // IPv4 or IPv6
	Port       Int    `json:"port"`
	ExportName string `json:"exportname"` // contains the session reference, which is a secret
	Cert       string `json:"cert"`       // certificate of the host, in PEM
	Subject    string `json:"subject"`    // a host name that the certificate covers
}

// NBDInfo lists the addresses at which a disk is served over NBD. The list is
// empty if no network is set up for NBD, or if no host on such a network can
// reach the disk.
func (c *Client) NBDInfo(ctx context.Context, vdi Ref) ([]NBDInfo, error) {
	var out []NBDInfo
	err := c.Call(ctx, "VDI.get_nbd_info", &out, vdi)
	return out, err
}

// EnableCBT enables changed block tracking (CBT) of a disk.
func (c *Client) EnableCBT(ctx context.Context, vdi Ref) error {
	return c.Call(ctx, "VDI.enable_cbt", nil, vdi)
}

// DisableCBT disables changed block tracking of a disk. The pool drops the
// record of the blocks that changed so far.
func (c *Client) DisableCBT(ctx context.Context, vdi Ref) error {
	return c.Call(ctx, "VDI.disable_cbt", nil, vdi)
}

// DestroyData deletes the data of a VDI snapshot and keeps its change tracking
// metadata. No VBD may reference the snapshot; the call waits while one does.
func (c *Client) DestroyData(ctx context.Context, vdi Ref) error {
	return c.Retry(ctx, func(ctx context.Context) error {
		return c.Call(ctx, "VDI.data_destroy", nil, vdi)
	})
}

// ChangedBlocks returns a bitmap of the 64 KiB granules of to that were written
// since from, the older of the two: granule i is bit 7-i%8 of byte i/8.
func (c *Client) ChangedBlocks(ctx context.Context, from, to Ref) ([]byte, error) {
	var text string
	if err := c.Call(ctx, "VDI.list_changed_blocks", &text, from, to); err != nil {
		return nil, err
	}
	bits, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("VDI.list_changed_blocks: %w", err)
	}
	return bits, nil
}
