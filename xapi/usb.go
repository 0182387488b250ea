package xapi

import "context"

// VUSB is a USB device of a host that is passed through to a VM. The pool has
// no call that plugs a VUSB into a running VM: the device reaches the guest
// when the VM starts.
type VUSB struct {
	Object            `json:"-"`
	UUID              string            `json:"uuid"`
	VM                Ref               `json:"VM"`
	USBGroup          Ref               `json:"USB_group"`
	OtherConfig       map[string]string `json:"other_config"`
	CurrentlyAttached bool              `json:"currently_attached"`
}

// USBGroup is the object that a VUSB connects to: one USB device of a host.
type USBGroup struct {
	Object    `json:"-"`
	UUID      string `json:"uuid"`
	NameLabel string `json:"name_label"`
	VUSBs     []Ref  `json:"VUSBs"`
}

// VUSB reads one VUSB record.
func (c *Client) VUSB(ctx context.Context, ref Ref) (VUSB, error) {
	return record[VUSB](ctx, c, "VUSB", ref)
}

// USBGroup reads one record of a USB group.
func (c *Client) USBGroup(ctx context.Context, ref Ref) (USBGroup, error) {
	return record[USBGroup](ctx, c, "USB_group", ref)
}

// CreateVUSB connects a VM to a USB group, which must not have a VUSB yet.
func (c *Client) CreateVUSB(ctx context.Context, v VUSB) (Ref, error) {
	var ref Ref
	err := c.Call(ctx, "VUSB.create", &ref, v.VM, v.USBGroup, notNil(v.OtherConfig))
	return ref, err
}

// DestroyVUSB removes a VUSB that is not attached to a running VM.
func (c *Client) DestroyVUSB(ctx context.Context, vusb Ref) error {
	return gone(c.Call(ctx, "VUSB.destroy", nil, vusb))
}
