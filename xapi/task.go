package xapi

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Intervals for polling tasks: short at first, because many calls take no time.
const (
	pollFirst = 25 * time.Millisecond
	pollMax   = 2 * time.Second
	// cancelGrace is how long the client waits for a cancelled task: long
	// operations check for cancellation about every 10 s, others immediately,
	// and the host notices a closed connection by itself.
	cancelGrace = 5 * time.Second
)

// NameTasks adds a text to the descriptions of the tasks that CreateTask creates from
// now on, so that others can find out whose they are.
func (c *Client) NameTasks(owner string) {
	c.names.mu.Lock()
	defer c.names.mu.Unlock()
	c.names.owner = owner
}

// CreateTask creates a task to which an HTTP transfer reports. It adds a random
// word to the description, so that the task can be found if the pool's answer
// is lost; otherwise nobody would ever end it.
func (c *Client) CreateTask(ctx context.Context, label, description string) (Ref, error) {
	var nonce [4]byte
	_, _ = rand.Read(nonce[:])
	c.names.mu.Lock()
	description = strings.TrimSpace(strings.TrimSpace(description+" "+c.names.owner) + fmt.Sprintf(" [%x]", nonce))
	c.names.mu.Unlock()
	for again := false; ; again = true {
		var ref Ref
		err := c.Call(ctx, "task.create", &ref, label, description)
		if err == nil || again || ctx.Err() != nil || (!lostConnection(err) && !IsCode(err, SessionInvalid)) {
			return ref, err
		}
		tasks, terr := c.Tasks(ctx)
		if terr != nil {
			return ref, errors.Join(err, terr)
		}
		for i := range tasks {
			if tasks[i].NameDescription == description {
				return tasks[i].Ref, nil
			}
		}
	}
}

// Task reads a task's record.
func (c *Client) Task(ctx context.Context, ref Ref) (Task, error) {
	return record[Task](ctx, c, "task", ref)
}

// Tasks reads the records of all tasks.
func (c *Client) Tasks(ctx context.Context) ([]Task, error) {
	return records[Task](ctx, c, "task")
}

// CancelTask asks the pool to stop a task. Operations notice this at their next
// check, or not at all.
func (c *Client) CancelTask(ctx context.Context, task Ref) error {
	return gone(c.Call(ctx, "task.cancel", nil, task))
}

// DestroyTask removes a task's record, even if no operation will ever complete
// the task: the pool only marks pending tasks, so DestroyTask sets a status
// first, also where the present one cannot be read. It succeeds if the task no
// longer exists.
func (c *Client) DestroyTask(ctx context.Context, task Ref) error {
	t, err := c.Task(ctx, task)
	if IsCode(err, HandleInvalid) || ctx.Err() != nil {
		return gone(err)
	}
	if err != nil || t.Status == "pending" || t.Status == "cancelling" {
		// Hosts before 7.2 do not have this call; there the pool drops the task
		// after a day.
		_ = c.Call(ctx, "task.set_status", nil, task, "cancelled")
	}
	return gone(c.Call(ctx, "task.destroy", nil, task))
}

// gone treats the error for an object that no longer exists as a success of its
// removal.
func gone(err error) error {
	if IsCode(err, HandleInvalid) {
		return nil
	}
	return err
}

// WaitTask waits until the task has ended and returns its result: the values of
// a set, one value, or none. Failures are *Error; ErrTaskLost means that the
// task no longer exists on the pool. The task's record remains. WaitTask does
// not cancel the task when ctx ends: see Async.
func (c *Client) WaitTask(ctx context.Context, task Ref) ([]string, error) {
	delay := pollFirst
	for {
		t, err := c.Task(ctx, task)
		if IsCode(err, HandleInvalid) {
			return nil, fmt.Errorf("task %s: %w", task, ErrTaskLost)
		}
		if err != nil {
			return nil, err
		}
		if t.Status != "pending" && t.Status != "cancelling" {
			refs, err := t.outcome()
			return refs, c.redact(err, "")
		}
		if !sleep(ctx, delay) {
			return nil, context.Cause(ctx)
		}
		delay = min(2*delay, pollMax)
	}
}

func (t *Task) outcome() ([]string, error) {
	switch {
	case t.Status == "success":
		return ParseTaskResult(t.Result)
	case len(t.ErrorInfo) > 0:
		return nil, &Error{Code: Code(t.ErrorInfo[0]), Params: t.ErrorInfo[1:]}
	case t.Status == "cancelled":
		return nil, &Error{Code: TaskCancelled, Params: []string{string(t.Ref)}}
	}
	return nil, fmt.Errorf("task %s: status %.40q without a reason", t.Ref, t.Status)
}

// ParseTaskResult parses the result field of a task: an XML-RPC value element
// as text, "<value>OpaqueRef:...</value>" or an array of such elements, empty
// for void. Very old hosts return a bare reference.
func ParseTaskResult(s string) ([]string, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	if s[0] != '<' {
		return []string{s}, nil
	}
	d := xml.NewDecoder(strings.NewReader(s))
	var values []string
	var content strings.Builder
	leaf := false // within a value that has contained no other value so far
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if len(values) == 1 && values[0] == "" {
				return nil, nil
			}
			return values, nil
		}
		if err != nil {
			return nil, fmt.Errorf("task result: %w", err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			switch e.Name.Local {
			case "value":
				leaf = true
			case "array", "struct":
				leaf = false
			}
			content.Reset()
		case xml.CharData:
			content.Write(e)
		case xml.EndElement:
			if e.Name.Local == "value" && leaf {
				values = append(values, content.String())
				leaf = false
			}
		}
	}
}

// Async makes the asynchronous form of a call and waits for its end. If ctx
// ends, it also cancels the operation on the pool, as far as the pool can stop
// it. If the operation completes nevertheless, Async returns its result
// together with the error, so that the caller can remove the new object.
func (c *Client) Async(ctx context.Context, method string, args ...any) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var task Ref
	// The answer arrives immediately, and without it the task could not be
	// stopped.
	start, cancel := detach(ctx, getterTimeout)
	err := c.Call(start, "Async."+method, &task, args...)
	cancel()
	if err != nil {
		return nil, err
	}
	values, err := c.WaitTask(ctx, task)
	tidy, cancel := detach(ctx, cleanupTimeout)
	defer cancel()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
		values = c.stopTask(tidy, task, cancelGrace)
	} else {
		_ = c.DestroyTask(tidy, task)
	}
	var e *Error
	if errors.As(err, &e) && e.Method == "" {
		e.Method = method
	}
	return values, err
}

// stopTask cancels a task, waits up to grace for its end, and removes it. If
// the task has succeeded nevertheless, it returns the result.
func (c *Client) stopTask(ctx context.Context, task Ref, grace time.Duration) []string {
	_ = c.CancelTask(ctx, task)
	var values []string
	if grace > 0 {
		wait, cancel := context.WithTimeout(ctx, grace)
		values, _ = c.WaitTask(wait, task)
		cancel()
	}
	_ = c.DestroyTask(ctx, task)
	return values
}

// asyncRef is Async for calls that return one reference.
func (c *Client) asyncRef(ctx context.Context, method string, args ...any) (Ref, error) {
	values, err := c.Async(ctx, method, args...)
	switch {
	case len(values) > 0:
		return Ref(values[0]), err
	case err == nil:
		return "", fmt.Errorf("%s: task ended without a result", method)
	}
	return "", err
}
