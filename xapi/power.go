package xapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// QuiesceTimedOut is the pool's answer if a guest did not freeze its disks in
// time.
const QuiesceTimedOut Code = "VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT"

// SnapshotQuiesced takes a VM snapshot with the participation of the guest's
// applications (VSS). Hosts from 8.1 on answer MessageRemoved. If both a
// reference and an error are returned, the snapshot exists.
func (c *Client) SnapshotQuiesced(ctx context.Context, vm Ref, name string) (Ref, error) {
	return c.asyncRef(ctx, "VM.snapshot_with_quiesce", vm, name)
}

// CheckpointVM takes a VM snapshot with memory; the guest is paused until it is
// complete. If both a reference and an error are returned, the snapshot exists.
func (c *Client) CheckpointVM(ctx context.Context, vm Ref, name string) (Ref, error) {
	return c.asyncRef(ctx, "VM.checkpoint", vm, name)
}

// CleanShutdown asks a VM's guest to shut down, and waits until it has done so.
func (c *Client) CleanShutdown(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.clean_shutdown", vm)
	return err
}

// StartVM starts a halted VM.
func (c *Client) StartVM(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.start", vm, false, false)
	return err
}

// HardShutdown powers off a VM immediately, without involving its guest. It
// succeeds if the VM is already halted or no longer exists.
func (c *Client) HardShutdown(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.hard_shutdown", vm)
	if IsCode(err, VMBadPowerState) {
		if v, verr := c.VM(ctx, vm); verr == nil && v.PowerState == "Halted" {
			return nil
		}
	}
	return gone(err)
}

// ExportDatabase writes the pool's database, as XML, to w. The database
// contains secrets. During a rolling upgrade, hosts send a database without
// rows.
func (c *Client) ExportDatabase(ctx context.Context, w io.Writer) error {
	task, err := c.CreateTask(ctx, c.cfg.UserAgent+": export database", "database of the pool")
	if err != nil {
		return fmt.Errorf("export the pool's database: %w", err)
	}
	req := bulk{
		method: http.MethodGet, path: "/pool/xmldbdump", stall: max(c.cfg.StallTimeout, 3*time.Minute),
		query: [][2]string{{"task_id", string(task)}},
	}
	err = c.exportMetadata(ctx, req, task, w)
	c.abandon(ctx, task, 0)
	if err != nil {
		return fmt.Errorf("export the pool's database: %w", err)
	}
	return nil
}
