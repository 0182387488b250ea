// Package simpool runs the simulated pool of the xenkeep binary as a separate
// process, as a user would.
package simpool

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"xenkeep/bench/measure"
)

// Pool is a running simulated pool.
type Pool struct {
	Ready
	binary string
	cmd    *exec.Cmd
	said   *bytes.Buffer // stderr; valid only after the process has ended
	over   chan error
}

// Ready is the description that the pool prints when it is ready.
type Ready struct {
	URL         string `json:"url"`
	User        string `json:"user"`
	Password    string `json:"password"`
	Fingerprint string `json:"fingerprint"`
	VMs         []struct {
		UUID  string `json:"uuid"`
		Name  string `json:"name"`
		Disks []Disk `json:"disks"`
	} `json:"vms"`
	SRs []struct {
		UUID string `json:"uuid"`
		Name string `json:"name"`
		Type string `json:"type"`
	} `json:"srs"`
}

// Disk is a disk of a VM; Size is in bytes.
type Disk struct {
	VDI    string `json:"vdi"`
	Device string `json:"device"`
	Size   int64  `json:"size"`
}

// readyWithin is how long a pool may take to start, on a busy machine.
const readyWithin = time.Minute

// Start starts a pool with VMs, each as NAME=DISK[,DISK...], and further arguments
// of "xenkeep sim". Data that guests write is stored in the folder state.
func Start(ctx context.Context, binary, state string, more []string, vms ...string) (*Pool, error) {
	args := append([]string{"sim", "--listen", "127.0.0.1:0", "--state", state}, more...)
	for _, vm := range vms {
		args = append(args, "--vm", vm)
	}
	p := &Pool{binary: binary, cmd: exec.Command(binary, args...), said: new(bytes.Buffer), over: make(chan error, 1)}
	p.cmd.Stderr = p.said
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	line := make(chan error, 1)
	go func() {
		text, err := bufio.NewReader(out).ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(text, &p.Ready)
		}
		line <- err
	}()
	select {
	case err = <-line:
	case <-time.After(readyWithin):
		err = errors.New("no answer")
	case <-ctx.Done():
		err = ctx.Err()
	}
	go func() { p.over <- p.cmd.Wait() }()
	if err != nil {
		_ = p.cmd.Process.Kill()
		<-p.over
		return nil, fmt.Errorf("start simulated pool: %w: %s", err, strings.TrimSpace(p.said.String()))
	}
	return p, nil
}

// Stop ends the pool.
func (p *Pool) Stop() error {
	select {
	case err := <-p.over:
		return fmt.Errorf("simulated pool ended early: %v: %s", err, strings.TrimSpace(p.said.String()))
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.over:
		if err != nil {
			return fmt.Errorf("simulated pool: %w: %s", err, strings.TrimSpace(p.said.String()))
		}
		return nil
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.over
		return errors.New("simulated pool did not stop when requested")
	}
}

// Env returns the environment variables with which xenkeep connects to the pool.
func (p *Pool) Env() []string {
	return []string{
		"XENKEEP_POOL=" + p.URL, "XENKEEP_POOL_USER=" + p.User,
		"XENKEEP_POOL_PASSWORD=" + p.Password, "XENKEEP_POOL_FINGERPRINT=" + p.Fingerprint,
	}
}

// CPU returns the CPU time that the pool has used so far.
func (p *Pool) CPU() (time.Duration, error) { return measure.CPU(p.cmd.Process.Pid) }

// Disks returns the disks of a VM that the pool was started with.
func (p *Pool) Disks(vm string) []Disk {
	for _, v := range p.VMs {
		if v.Name == vm {
			return v.Disks
		}
	}
	return nil
}

// SR returns the name of the first SR of a type, or "" if there is none.
func (p *Pool) SR(kind string) string {
	for _, s := range p.SRs {
		if s.Type == kind {
			return s.UUID
		}
	}
	return ""
}

// Write lets the guest make its disk equal to a file, and returns the number of
// bytes that it wrote.
func (p *Pool) Write(ctx context.Context, vdi, image string) (int64, error) {
	out, _, err := measure.Run(ctx, measure.Command{Args: []string{p.binary, "sim", "write", "--url", p.URL, "--vdi", vdi, "--image", image}})
	if err != nil {
		return 0, err
	}
	var written struct {
		Bytes int64 `json:"bytes_written"`
	}
	if err := json.Unmarshal(out, &written); err != nil {
		return 0, fmt.Errorf("sim write: %q: %w", out, err)
	}
	return written.Bytes, nil
}
