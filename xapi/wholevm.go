package xapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Compressions of a whole VM's archive.
const (
	CompressNone = ""
	CompressGzip = "gzip"
	CompressZstd = "zstd" // hosts before 8.1 take it for none
)

// ExportVMOptions says how a whole VM is exported.
type ExportVMOptions struct {
	VM       Ref // halted or suspended, a template, or a VM snapshot
	Compress string
	// Memory keeps the power state: a suspended VM brings its memory along.
	Memory       bool
	StallTimeout time.Duration // replaces that of the client's Config
}

// ExportVM starts the export of a whole VM as an XVA archive (GET /export). It
// is used as that of a disk; its length is not known.
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

// ImportVMOptions says where a whole VM goes.
type ImportVMOptions struct {
	SR Ref // null: the pool's default
	// Preserve keeps the VM's UUID and MACs. A pool that has a VM of that UUID
	// refuses the archive, unless it holds a newer version of the VM.
	Preserve bool
	// ContentLength is the exact length of the archive.
	ContentLength int64
	StallTimeout  time.Duration
}

// ImportVM makes VMs from an XVA archive (PUT /import), which body writes; see
// ImportVDI. It returns what was made; on failure the host removes that.
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

// CopyVM makes a full copy of a halted VM, a snapshot or a template, to an SR
// or, where that is null, to the SRs of its disks.
func (c *Client) CopyVM(ctx context.Context, vm Ref, name string, sr Ref) (Ref, error) {
	return c.asyncRef(ctx, "VM.copy", vm, name, orNull(sr))
}

// ProvisionVM makes a VM of a template, with the disks that the template wants.
func (c *Client) ProvisionVM(ctx context.Context, template Ref) error {
	_, err := c.Async(ctx, "VM.provision", template)
	return err
}

// RevertVM takes the VM of a snapshot back to it. Nobody can cancel it.
func (c *Client) RevertVM(ctx context.Context, snapshot Ref) error {
	_, err := c.Async(ctx, "VM.revert", snapshot)
	return err
}

// ResumeVM lets a suspended VM go on.
func (c *Client) ResumeVM(ctx context.Context, vm Ref) error {
	_, err := c.Async(ctx, "VM.resume", vm, false, false)
	return err
}

// DescribeVM sets what people read about a VM, a snapshot or a template.
func (c *Client) DescribeVM(ctx context.Context, vm Ref, text string) error {
	return c.Call(ctx, "VM.set_name_description", nil, vm, text)
}

// AddVMTag gives a VM a tag.
func (c *Client) AddVMTag(ctx context.Context, vm Ref, tag string) error {
	return c.Call(ctx, "VM.add_tags", nil, vm, tag)
}
