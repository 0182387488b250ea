package nightly

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"xenkeep/internal/child"
	"xenkeep/job"
)

// defaultHookTime is the default time limit of a hook.
const defaultHookTime = 10 * time.Minute

// hookOutput limits the output of a hook that is kept: its end contains the reason of
// a failure.
const hookOutput = 4 << 10

// tail keeps the end of the data that are written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > hookOutput {
		t.b = bytes.Clone(t.b[len(t.b)-hookOutput:])
	}
	return len(p), nil
}

// hook runs a shell command. At the time limit it kills the command with all processes
// that it started. The command does not receive the variables that contain our
// secrets, which include those named.
func hook(ctx context.Context, what, command string, limit time.Duration, secrets []string, env ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(child.Env(secrets...), env...)
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("it took longer than %v", limit)
	}
	if text := strings.Join(strings.Fields(string(out.b)), " "); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return fmt.Errorf("hook %s: %w: %w", what, job.ErrHook, err)
}
