// Package measure runs programs and measures their cost: wall time, CPU time and
// peak memory. Memory is read from Linux's /proc/PID/status (proc_pid_status(5))
// while the program runs: VmHWM is the kernel's own peak of resident memory, mapped
// files included; the peak of anonymous memory is sampled.
package measure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Usage is the cost of one run of a program.
type Usage struct {
	Wall     time.Duration
	CPU      time.Duration // user and system
	PeakRSS  int64         // bytes
	PeakAnon int64         // bytes, the largest sample
}

// Command is a program to be run.
type Command struct {
	Args []string
	Dir  string
	Env  []string // in addition to the environment of this process
}

// sampleEvery is short compared with the run time of a program, and reading is
// cheap.
const sampleEvery = 10 * time.Millisecond

// Run runs a program to its end; stdout is its standard output. If the program
// fails, the error contains the end of its error output.
func Run(ctx context.Context, c Command) (stdout []byte, u Usage, err error) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, u, err
	}
	over, sampled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sampled)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				if m, err := memoryOf(cmd.Process.Pid); err == nil {
					u.PeakRSS, u.PeakAnon = max(u.PeakRSS, m.hwm), max(u.PeakAnon, m.anon)
				}
			}
		}
	}()
	err = cmd.Wait()
	u.Wall = time.Since(start)
	close(over)
	<-sampled
	if s := cmd.ProcessState; s != nil {
		u.CPU = s.UserTime() + s.SystemTime()
	}
	if err != nil {
		said := strings.TrimSpace(errs.String() + out.String())
		if len(said) > 2000 {
			said = "..." + said[len(said)-2000:]
		}
		return out.Bytes(), u, errors.Join(ctx.Err(), fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, said))
	}
	return out.Bytes(), u, nil
}

type memory struct{ hwm, anon int64 }

func memoryOf(pid int) (m memory, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(data)) {
		var to *int64
		switch {
		case strings.HasPrefix(line, "VmHWM:"):
			to = &m.hwm
		case strings.HasPrefix(line, "RssAnon:"):
			to = &m.anon
		default:
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return m, fmt.Errorf("/proc/%d/status: %q", pid, line)
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return m, err
		}
		*to = kib << 10
	}
	return m, nil
}

// CPU returns the CPU time that a running process has used so far
// (proc_pid_stat(5), fields 14 and 15), in steps of 10 ms.
func CPU(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, field 2, may contain any character but ends with the last
	// parenthesis.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Go runs on
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// Load returns the machine's load average over the last minute.
func Load() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}

// Warm reads files, so that they are in the page cache, and returns their total
// size.
func Warm(paths ...string) (int64, error) {
	var n int64
	buf := make([]byte, 4<<20)
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return n, err
		}
		m, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{f}, buf)
		f.Close()
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// These types hide WriteTo and ReadFrom, which would not use the buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
