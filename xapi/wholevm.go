package xapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Compression methods of a whole VM's archive.
const (
	CompressNone = ""
	CompressGzip = "gzip"
	CompressZstd = "zstd" // hosts before 8.1 treat it as no compression
)

// ExportVMOptions defines how a whole VM is exported.
type ExportVMOptions struct {
	VM       Ref // halted or suspended, a template, or a VM snapshot
	Compress string
	// Memory preserves the power state: the archive of a suspended VM contains
	// its memory.
	Memory       bool
	StallTimeout time.Duration // overrides the one of the client's Config
}

// ExportVM starts the export of a whole VM as an XVA archive (GET /export). The
// Export is used like that of a disk; its length is not known in advance.
func (c *Client) ExportVM(ctx context.Context, opts ExportVMOptions) (*Export, error) {
	task, err := c.CreateTask(ctx, c.cfg.UserAgent+": export", "export of "+string(opts.VM))
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", opts.VM, err)
	}
	req := bulk{
		method: http.MethodGet, path: "/export",
		// The host waits up to 120 s for a busy VM before it answers.
		stall: max(c.stall(opts.StallTimeout), 3*time.Minute),
		query: [][2]string{{"task_id", string(task)}, {"ref", string(opts.VM)}},
	}
	if opts.Compress != CompressNone {
		req.query = append(req.query, [2]string{"use_compression", opts.Compress})
	}
	if opts.Memory {
		req.query = append(req.query, [2]string{"preserve_power_state", "true"})
	}
	s, resp, addr, err := c.open(ctx, c.Master(), req)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = c.refusal(ctx, s, resp, addr, req, task)
	}
	if err != nil {
		c.abandon(ctx, task, 0)
		return nil, fmt.Errorf("export %s: %w", opts.VM, err)
	}
	return &Export{c: c, s: s, body: resp.Body, plain: len(resp.TransferEncoding) == 0, format: "xva", host: addr, task: task}, nil
}

// ImportVMOptions defines where a whole VM is imported to.
type ImportVMOptions struct {
	SR Ref // null: the pool's default SR
	// Preserve keeps the VM's UUID and MAC addresses. If the pool has a VM with
	// that UUID, it refuses the archive, unless the archive holds a newer
	// version of the VM.
	Preserve bool
	// ContentLength is the exact length of the archive.
	ContentLength int64
	StallTimeout  time.Duration
}

// ImportVM creates VMs from an XVA archive (PUT /import), which body writes;
// see ImportVDI. It returns the new VMs; on failure the host removes them.
func (c *Client) ImportVM(ctx context.Context, opts ImportVMOptions, body func(w io.Writer) error) ([]Ref, error) {
	task, err := c.CreateTask(ctx, c.cfg.UserAgent+": import", "import of a VM")
	if err != nil {
		return nil, fmt.Errorf("import a VM: %w", err)
	}
	req := bulk{
		method: http.MethodPut, path: "/import", length: opts.ContentLength, stall: c.stall(opts.StallTimeout),
		query: [][2]string{{"task_id", string(task)}},
	}
	if !opts.SR.IsNull() {
		req.query = append(req.query, [2]string{"sr_id", string(opts.SR)})
	}
	if opts.Preserve {
		req.query = append(req.query, [2]string{"restore", "true"})
	}
	atWork, err := c.sendBody(ctx, c.Master(), task, req, body)
	var made []Ref
	if err == nil {
		var values []string
		if values, err = c.WaitTask(ctx, task); err == nil {
			for _, v := range values {
				made = append(made, Ref(v))
			}
		}
	}
	var grace time.Duration
	if atWork {
		grace = cancelGrace
	}
	c.abandon(ctx, task, grace)
	if err != nil {
		return made, fmt.Errorf("import a VM: %w", err)
	}
	return made, nil
}

// CopyVM makes a full copy of a halted VM, a snapshot or a template on an SR
// or, if sr is null, on the SRs of its disks.
func (c *Client) CopyVM(ctx context.Context, vm Ref, name string, sr Ref) (Ref, error) {
	return c.asyncRef(ctx, "VM.copy", vm, name, orNull(sr))
}

// ProvisionVM turns a copy of a template into a VM, with the disks that the
// template defines.
func (c *Client) ProvisionVM(ctx context.Context, template Ref) error {
	_, err := c.Async(ctx, "VM.provision", template)
	return err
}

// RevertVM reverts the VM of a snapshot to that snapshot. The operation cannot
// be cancelled.
func (c *Client) RevertVM(ctx context.Context, snapshot Ref) error {
	_, err := c.Async(ctx, "VM.revert", snapshot)
	return err
}

// ResumeVM resumes a suspended VM.
func (c *Client) ResumeVM(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.resume", vm, false, false)
	return err
}

// DescribeVM sets the description of a VM, a snapshot or a template.
func (c *Client) DescribeVM(ctx context.Context, vm Ref, text string) error {
	return c.Call(ctx, "VM.set_name_description", nil, vm, text)
}

// AddVMTag adds a tag to a VM.
func (c *Client) AddVMTag(ctx context.Context, vm Ref, tag string) error {
	return c.Call(ctx, "VM.add_tags", nil, vm, tag)
}
