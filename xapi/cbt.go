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
	ExportName string `json:"exportname"` // holds the session: a secret
	Cert       string `json:"cert"`       // PEM, of the host
	Subject    string `json:"subject"`    // a name in the certificate
}

// NBDInfo lists the addresses at which a disk is served over NBD: none where
// no network is set up for it, or no host on one reaches the disk.
func (c *Client) NBDInfo(ctx context.Context, vdi Ref) ([]NBDInfo, error) {
	var out []NBDInfo
	err := c.Call(ctx, "VDI.get_nbd_info", &out, vdi)
	return out, err
}

// EnableCBT makes the pool track which parts of a disk are written to.
func (c *Client) EnableCBT(ctx context.Context, vdi Ref) error {
	return c.Call(ctx, "VDI.enable_cbt", nil, vdi)
}

// DisableCBT ends the tracking of a disk; lists of changes since are gone then.
func (c *Client) DisableCBT(ctx context.Context, vdi Ref) error {
	return c.Call(ctx, "VDI.disable_cbt", nil, vdi)
}

// DestroyData removes a VDI snapshot's data and keeps what it knows of changes.
// No VBD may lead to it any more; it waits while one does.
func (c *Client) DestroyData(ctx context.Context, vdi Ref) error {
	return c.Retry(ctx, func(ctx context.Context) error {
		return c.Call(ctx, "VDI.data_destroy", nil, vdi)
	})
}

// ChangedBlocks returns a bitmap of the 64 KiB granules of to that were written
// to since from, the older: granule i is bit 7-i%8 of byte i/8.
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
