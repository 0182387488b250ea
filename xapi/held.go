package xapi

import (
	"context"
	"errors"
	"strings"
	"time"
)

// illegalTransition is how the storage layer refuses to attach a disk to a
// control domain that holds it in another mode already. It comes as a parameter
// of INTERNAL_ERROR.
const illegalTransition = "Illegal_transition"

// releaseLimit bounds how long WaitReleased waits. A host takes the VBDs of an
// NBD read away one by one, 0.1 to 1.5 s after the connections closed.
const releaseLimit = time.Minute

// InUse reports whether err says that a disk is attached elsewhere in a way that
// forbids what was asked for. Nothing was read or written then.
func InUse(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Code == VDIInUse || e.heldElsewhere())
}

func (e *Error) heldElsewhere() bool {
	return e.Code == "INTERNAL_ERROR" && strings.Contains(strings.Join(e.Params, " "), illegalTransition)
}

// WaitReleased waits until no control domain holds a disk any more, as one does for a
// moment after a read over NBD and after an export. It reports whether that is so:
// after a minute it gives up.
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

// RefusedValue returns the name of the field or key whose value the pool refused, or
// "" for any other error.
func RefusedValue(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Code == "INVALID_VALUE" && len(e.Params) > 0 {
		return e.Params[0]
	}
	return ""
}
