package xapi

import (
	"context"
	"errors"
	"strings"
	"time"
)

// illegalTransition is the error with which the storage layer refuses to attach
// a disk to a control domain that already has it attached in another mode. It
// is a parameter of INTERNAL_ERROR.
const illegalTransition = "Illegal_transition"

// releaseLimit bounds how long WaitReleased waits. After an NBD read, a host
// removes the VBDs one by one, 0.1 to 1.5 s after the connections closed.
const releaseLimit = time.Minute

// InUse reports whether err means that a disk is attached elsewhere in a way
// that excludes the requested operation. In that case nothing was read or
// written.
func InUse(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Code == VDIInUse || e.heldElsewhere())
}

func (e *Error) heldElsewhere() bool {
	return e.Code == "INTERNAL_ERROR" && strings.Contains(strings.Join(e.Params, " "), illegalTransition)
}

// WaitReleased waits until the disk is attached to no control domain. A control
// domain keeps a disk attached for a moment after an NBD read and after an
// export. WaitReleased reports whether the disk was released: it stops waiting
// after a minute.
func (c *Client) WaitReleased(ctx context.Context, vdi Ref) (bool, error) {
	pace := c.cfg.pace()
	delay := 100 * time.Millisecond
	for waited := time.Duration(0); waited < releaseLimit; waited += delay {
		held, err := c.heldByDomain(ctx, vdi)
		if err != nil || !held {
			return err == nil, err
		}
		if waited > time.Second {
			delay = time.Second
		}
		if !sleep(ctx, pace(delay)) {
			return false, context.Cause(ctx)
		}
	}
	return false, nil
}

func (c *Client) heldByDomain(ctx context.Context, vdi Ref) (bool, error) {
	v, err := c.VDI(ctx, vdi)
	if err != nil {
		return false, err
	}
	for _, ref := range v.VBDs {
		b, err := c.VBD(ctx, ref)
		if IsCode(err, HandleInvalid) {
			continue
		}
		if err != nil {
			return false, err
		}
		vm, err := c.VM(ctx, b.VM)
		if err != nil && !IsCode(err, HandleInvalid) {
			return false, err
		}
		if vm.IsControlDomain {
			return true, nil
		}
	}
	return false, nil
}

// RefusedValue returns the name of the field or key whose value the pool
// refused, or "" for any other error.
func RefusedValue(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Code == "INVALID_VALUE" && len(e.Params) > 0 {
		return e.Params[0]
	}
	return ""
}
