package xapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// QuiesceTimedOut is answered where a guest did not freeze its disks in time.
const QuiesceTimedOut Code = "VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT"

// SnapshotQuiesced takes a VM snapshot in which the guest's applications took
// part (VSS). Hosts from 8.1 on answer MessageRemoved. A reference beside an
// error is a snapshot that was made all the same.
func (c *Client) SnapshotQuiesced(ctx context.Context, vm Ref, name string) (Ref, error) {
	return c.asyncRef(ctx, "VM.snapshot_with_quiesce", vm, name)
}

// CheckpointVM takes a VM snapshot with memory: the guest stands still until it
// is done. A reference beside an error is a snapshot that was made all the same.
func (c *Client) CheckpointVM(ctx context.Context, vm Ref, name string) (Ref, error) {
	return c.asyncRef(ctx, "VM.checkpoint", vm, name)
}

// CleanShutdown asks a VM's guest to shut down, and waits until it has.
func (c *Client) CleanShutdown(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.clean_shutdown", vm)
	return err
}

// StartVM starts a halted VM.
func (c *Client) StartVM(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.start", vm, false, false)
	return err
}

// HardShutdown halts a VM at once, without asking its guest. A VM that is
// halted, or gone, is no error.
func (c *Client) HardShutdown(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.hard_shutdown", vm)
	if IsCode(err, VMBadPowerState) {
		if v, verr := c.VM(ctx, vm); verr == nil && v.PowerState == "Halted" {
			return nil
		}
	}
	return gone(err)
}

// ExportDatabase writes the pool's database, as XML, to w. It holds secrets. In
// the middle of a rolling upgrade hosts send one without rows.
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
