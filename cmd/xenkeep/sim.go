package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"xenkeep/xapi/xapisim"
)

type simOptions struct {
	listen     string
	state      string
	vms        []string
	noTLS      bool
	srType     string
	raw        bool
	running    bool
	hosts      int
	cbt        bool
	nbd        string
	nbdServer  string
	nbdFragile bool
	version    string
	drivers    bool
	guests     []string
	srSize     string
	noLicence  bool
}

// newSimCommand serves a simulated pool, for trying things out and for tests.
func newSimCommand() *cobra.Command {
	var o simOptions
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Serve a simulated XenServer pool",
		Long: `Serve a simulated XenServer pool on loopback until interrupted.

Each VM has disks that begin as raw or VHD files, which are never written; what
guests and restores write is stored in the state folder, for as long as the pool runs.
One line of JSON on stdout contains URL, user, password, certificate fingerprint,
VMs, SRs and NBD
addresses as soon as the pool answers.`,
		Example: `  xenkeep sim --state /tmp/pool --vm web=root.img,data.vhd
  xenkeep sim write --url https://127.0.0.1:4443 --vdi UUID --image day2.img`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runSim(cmd, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:0", "the master's `address`; members use the same port at the following addresses")
	f.StringVar(&o.state, "state", "", "`folder` for what is written to disks (a temporary one)")
	f.StringArrayVar(&o.vms, "vm", nil, "a VM, as `NAME=DISK[,DISK...]`; may be repeated")
	f.BoolVar(&o.noTLS, "no-tls", false, "serve plain HTTP")
	f.StringVar(&o.srType, "sr-type", "ext", "the `driver` of the SR that the VMs' disks are on: ext, nfs, smb, lvm, lvmoiscsi, lvmohba")
	f.BoolVar(&o.raw, "raw", false, "make the VMs' disks without VHD")
	f.BoolVar(&o.running, "running", true, "start the VMs")
	f.IntVar(&o.hosts, "hosts", 2, "how many `hosts` the pool has, the master included")
	f.BoolVar(&o.cbt, "cbt", false, "enable changed-block tracking on the VMs' disks")
	f.StringVar(&o.nbd, "nbd", "off", "how the hosts serve disks over NBD: tls, plain or off (`mode`)")
	f.StringVar(&o.nbdServer, "nbd-server", "xapi", "the `kind` of NBD server: xapi, xapi-new (GO, structured replies) or full (block status, replies out of order)")
	f.BoolVar(&o.nbdFragile, "nbd-fragile", false, "let a host's NBD server die when a client disconnects while replies are in progress")
	f.StringVar(&o.version, "version", "current", "which `version` of XenServer the pool is like: 8.0, 8.2 or current")
	f.BoolVar(&o.drivers, "drivers", false, "give the VMs guests with drivers")
	f.StringArrayVar(&o.guests, "guest", nil, "a guest's `script`, as PATTERN=BEHAVIOUR[,DELAY[,IMAGE...]]; may be repeated")
	f.StringVar(&o.srSize, "sr-size", "", "how many `bytes` the SR of the VMs' disks has (8 TiB)")
	f.BoolVar(&o.noLicence, "unlicensed", false, "answer calls that need a licence as a pool without one")
	cmd.AddCommand(newSimWriteCommand(), newSimFaultCommand(), newSimClockCommand())
	return cmd
}

func runSim(cmd *cobra.Command, o simOptions) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	pool, err := xapisim.New(cfg)
	if err != nil {
		return fmt.Errorf("start the simulated pool: %w", err)
	}
	if err := json.NewEncoder(cmd.OutOrStdout()).Encode(pool.Ready()); err != nil {
		return errors.Join(err, pool.Close())
	}
	<-cmd.Context().Done()
	return pool.Close()
}

// config places the disks of the VMs on the first SR of the wanted type, and adds one
// if there is none.
func (o simOptions) config() (xapisim.Config, error) {
	cfg := xapisim.Config{State: o.state, Listen: o.listen, Hosts: o.hosts, NoTLS: o.noTLS, CBT: o.cbt, NBD: xapisim.NBDMode(o.nbd), NBDServer: xapisim.NBDServer(o.nbdServer), NBDFragile: o.nbdFragile,
		Version: xapisim.Version(o.version), SRs: xapisim.DefaultSRs(), Unlicensed: o.noLicence}
	var room uint64
	if o.srSize != "" {
		var err error
		if room, err = humanize.ParseBytes(o.srSize); err != nil {
			return cfg, fmt.Errorf("--sr-size %s: want bytes, such as 100MiB", o.srSize)
		}
	}
	if o.hosts < 1 {
		return cfg, fmt.Errorf("--hosts %d: a pool has at least one", o.hosts)
	}
	name := ""
	for _, s := range cfg.SRs {
		if s.Type == o.srType && name == "" {
			name = s.Name
		}
	}
	if name == "" {
		name = "Storage of the VMs"
		cfg.SRs = append(cfg.SRs, xapisim.SRConfig{Name: name, Type: o.srType, Shared: true})
	}
	for i := range cfg.SRs {
		if cfg.SRs[i].Name == name {
			cfg.SRs[i].Size = int64(room)
		}
	}
	for _, v := range o.vms {
		vm, disks, ok := strings.Cut(v, "=")
		if !ok || vm == "" || disks == "" {
			return cfg, fmt.Errorf("--vm %s: want NAME=DISK[,DISK...]", v)
		}
		cfg.VMs = append(cfg.VMs, xapisim.VMConfig{
			Name: vm, Disks: strings.Split(disks, ","), SR: name, Halted: !o.running, RawDisks: o.raw, Drivers: o.drivers,
		})
	}
	for _, g := range o.guests {
		script, err := parseGuest(g)
		if err != nil {
			return cfg, err
		}
		cfg.Guests = append(cfg.Guests, script)
	}
	return cfg, nil
}

// parseGuest reads PATTERN=BEHAVIOUR[,DELAY[,IMAGE...]].
func parseGuest(text string) (xapisim.GuestScript, error) {
	name, rest, ok := strings.Cut(text, "=")
	parts := strings.Split(rest, ",")
	if !ok || name == "" || parts[0] == "" {
		return xapisim.GuestScript{}, fmt.Errorf("--guest %s: want PATTERN=BEHAVIOUR[,DELAY[,IMAGE...]]", text)
	}
	g := xapisim.GuestScript{Name: name, Behaviour: xapisim.GuestBehaviour(parts[0])}
	if len(parts) > 1 {
		var err error
		if g.Delay, err = time.ParseDuration(parts[1]); err != nil {
			return g, fmt.Errorf("--guest %s: %w", text, err)
		}
		g.Disks = parts[2:]
	}
	return g, nil
}

func newSimWriteCommand() *cobra.Command {
	var pool, vdi, image string
	cmd := &cobra.Command{
		Use:   "write",
		Short: "Let a guest of the simulated pool write to its disk",
		Long: `Let a guest write: its live disk becomes equal to the file, and only the 4 KiB
pages that differ are written. Prints how many bytes that were.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := filepath.Abs(image) // the pool's process opens it
			if err != nil {
				return err
			}
			return runSimWrite(cmd, pool, vdi, path)
		},
	}
	f := cmd.Flags()
	f.StringVar(&pool, "url", "", "the simulated pool's `URL`")
	f.StringVar(&vdi, "vdi", "", "the disk's `UUID`")
	f.StringVar(&image, "image", "", "raw or VHD `file` with the disk's new content")
	for _, name := range []string{"url", "vdi", "image"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}

func runSimWrite(cmd *cobra.Command, pool, vdi, image string) error {
	body, err := askSim(cmd.Context(), pool, "write", url.Values{"vdi": {vdi}, "image": {image}}, nil)
	if err != nil {
		return fmt.Errorf("sim write: %w", err)
	}
	fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(string(body)))
	return nil
}

// askSim posts to a control path of a simulated pool, and returns the answer.
func askSim(ctx context.Context, pool, path string, q url.Values, content []byte) ([]byte, error) {
	u := strings.TrimSuffix(pool, "/") + "/xapisim/" + path + "?" + q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	// The pool is simulated, on loopback, and nothing secret is sent.
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}
