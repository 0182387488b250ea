package xapi

import (
	"context"
	"errors"
)

// VMSS is a snapshot schedule, since 7.2 (xen-api ocaml/idl/datamodel.ml,
// ocaml/xapi/xapi_vmss.ml).
type VMSS struct {
	Object            `json:"-"`
	UUID              string `json:"uuid"`
	NameLabel         string `json:"name_label"`
	NameDescription   string `json:"name_description"`
	Enabled           bool   `json:"enabled"`
	Type              string `json:"type"`               // snapshot, checkpoint, snapshot_with_quiesce
	RetainedSnapshots Int    `json:"retained_snapshots"` // 1 to 10
	Frequency         string `json:"frequency"`          // hourly, daily, weekly
	// Schedule has the key min, and hour and days if they apply, in the pool's
	// own time zone.
	Schedule    map[string]string `json:"schedule"`
	LastRunTime Time              `json:"last_run_time"`
	VMs         []Ref             `json:"VMs"`
}

// Message is a message of the pool to its users.
type Message struct {
	Object    `json:"-"`
	UUID      string `json:"uuid"`
	Name      string `json:"name"`
	Priority  Int    `json:"priority"`
	Class     string `json:"cls"` // VM, VMSS, ...
	ObjUUID   string `json:"obj_uuid"`
	Timestamp Time   `json:"timestamp"`
	Body      string `json:"body"`
}

// ErrNoSchedules: the pool is older than 7.2 and has no snapshot schedules.
var ErrNoSchedules = errors.New("the pool has no snapshot schedules: they came with 7.2")

// VMSSs reads all snapshot schedules.
func (c *Client) VMSSs(ctx context.Context) ([]VMSS, error) {
	list, err := records[VMSS](ctx, c, "VMSS")
	if IsCode(err, MethodUnknown) {
		return nil, errors.Join(ErrNoSchedules, err)
	}
	return list, err
}

// VMSS reads one snapshot schedule.
func (c *Client) VMSS(ctx context.Context, ref Ref) (VMSS, error) {
	return record[VMSS](ctx, c, "VMSS", ref)
}

// Messages reads all messages.
func (c *Client) Messages(ctx context.Context) ([]Message, error) {
	return records[Message](ctx, c, "message")
}

// CreateVMSS makes a snapshot schedule.
func (c *Client) CreateVMSS(ctx context.Context, s VMSS) (Ref, error) {
	ref, err := c.asyncRef(ctx, "VMSS.create", map[string]any{
		"name_label": s.NameLabel, "name_description": s.NameDescription, "enabled": s.Enabled, "type": s.Type,
		"retained_snapshots": int64(s.RetainedSnapshots), "frequency": s.Frequency, "schedule": notNil(s.Schedule),
	})
	if IsCode(err, MethodUnknown) {
		return ref, errors.Join(ErrNoSchedules, err)
	}
	return ref, err
}

// DestroyVMSS removes a snapshot schedule that no VM is assigned to.
func (c *Client) DestroyVMSS(ctx context.Context, ref Ref) error {
	_, err := c.Async(ctx, "VMSS.destroy", ref)
	return gone(err)
}

// SetVMSS changes one field of a schedule: name_label, name_description,
// enabled, type, retained_snapshots, frequency or schedule.
func (c *Client) SetVMSS(ctx context.Context, ref Ref, field string, value any) error {
	return c.Call(ctx, "VMSS.set_"+field, nil, ref, value)
}

// RunVMSS takes the snapshots of a schedule immediately, and returns the pool's
// own text about it. The call has no Async form, so it lasts until the
// snapshots exist.
func (c *Client) RunVMSS(ctx context.Context, ref Ref) (string, error) {
	var text string
	err := c.Call(ctx, "VMSS.snapshot_now", &text, ref)
	return text, err
}

// AssignVMSS assigns a VM to a schedule in place of the one that it had; with
// the null reference, it removes the VM from its schedule.
func (c *Client) AssignVMSS(ctx context.Context, vm, schedule Ref) error {
	return c.Call(ctx, "VM.set_snapshot_schedule", nil, vm, orNull(schedule))
}
