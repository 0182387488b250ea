package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/bench/measure"
)

// run runs xenkeep; if into is set, the last line of JSON that it prints is decoded
// there.
func (d *demo) run(ctx context.Context, into any, args ...string) (measure.Usage, error) {
	if into != nil {
		args = append(args, "--json")
	}
	out, u, err := measure.Run(ctx, measure.Command{
		Args: append([]string{d.xenkeep}, args...),
		Env: append(d.pool.Env(), "XENKEEP_REPOSITORY="+d.path("repo"), "XENKEEP_PASSWORD=only for this demo",
			"XENKEEP_CACHE_DIR="+d.path("cache")),
	})
	if err != nil || into == nil {
		return u, err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), into); err != nil {
		return u, fmt.Errorf("xenkeep %s printed %q: %w", args[0], lines[len(lines)-1], err)
	}
	return u, nil
}

// backup backs up the VM, which must use the given method, and returns the
// snapshot's ID.
func (d *demo) backup(ctx context.Context, method string) (id string, err error) {
	var s struct {
		Status    string `json:"status"`
		Uploaded  int64  `json:"bytes_uploaded"`
		Snapshots []struct {
			ID    string `json:"id"`
			Disks []struct {
				Size   int64  `json:"size"`
				Method string `json:"method"`
				Reason string `json:"reason"`
				Read   int64  `json:"bytes_read"`
			} `json:"disks"`
		} `json:"snapshots"`
	}
	err = d.step("xenkeep backup "+vmName+" ("+method+")", func() (string, error) {
		start := time.Now()
		u, err := d.run(ctx, &s, "backup", vmName)
		if err != nil {
			return "", err
		}
		if s.Status != "ok" || len(s.Snapshots) != 1 || len(s.Snapshots[0].Disks) != 2 {
			return "", fmt.Errorf("status %q, %d snapshots", s.Status, len(s.Snapshots))
		}
		var read, whole int64
		for _, disk := range s.Snapshots[0].Disks {
			read, whole = read+disk.Read, whole+disk.Size
			if disk.Method != method {
				return "", fmt.Errorf("method %s (%s)", disk.Method, disk.Reason)
			}
		}
		id = s.Snapshots[0].ID
		return fmt.Sprintf("%s of %s read, %s; %s stored; CPU %.2f s, peak %d MiB", size(read), size(whole), rate(read, start), size(s.Uploaded), u.CPU.Seconds(), u.PeakRSS>>20), nil
	})
	return id, err
}

type restored struct {
	Disks []struct {
		Device  string `json:"device"`
		VDI     string `json:"vdi"`
		Written int64  `json:"bytes_written"`
	} `json:"disks"`
}

// restorePool runs a restore to the pool and compares the VDIs that it made.
func (d *demo) restorePool(ctx context.Context, what string, want *guest, args ...string) error {
	var r restored
	if err := d.step("xenkeep restore: "+what, func() (string, error) {
		start := time.Now()
		u, err := d.run(ctx, &r, args...)
		if err != nil {
			return "", err
		}
		var n int64
		for _, disk := range r.Disks {
			n += disk.Written
		}
		return fmt.Sprintf("%s written, %s; CPU %.2f s", size(n), rate(n, start), u.CPU.Seconds()), nil
	}); err != nil {
		return err
	}
	return d.step("  export what was restored and compare it byte for byte", func() (string, error) {
		start := time.Now()
		if len(r.Disks) != len(want.disks) {
			return "", fmt.Errorf("%d disks restored of %d", len(r.Disks), len(want.disks))
		}
		var n int64
		for i, disk := range r.Disks {
			if disk.Device != d.pool.Disks(vmName)[i].Device {
				return "", fmt.Errorf("disk %d is %s", i, disk.Device)
			}
			if err := d.compareVDI(ctx, disk.VDI, want.disks[i]); err != nil {
				return "", err
			}
			n += want.sizes[i]
		}
		return fmt.Sprintf("equal: %s, %s", size(n), rate(n, start)), nil
	})
}

// restoreFiles restores both disks to files, compares them, and verifies the first
// with e2fsck and with the files' checksums.
func (d *demo) restoreFiles(ctx context.Context, what, id string, want *guest) error {
	dir := d.path("files")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var files []string
	if err := d.step("xenkeep restore: "+what+" to files", func() (string, error) {
		start := time.Now()
		var n int64
		for _, disk := range d.pool.Disks(vmName) {
			file := filepath.Join(dir, disk.Device+".raw")
			var r restored
			if _, err := d.run(ctx, &r, "restore", id, "--disk", disk.Device, "--to", file); err != nil {
				return "", err
			}
			for _, got := range r.Disks {
				n += got.Written
			}
			files = append(files, file)
		}
		return fmt.Sprintf("%s written, %s", size(n), rate(n, start)), nil
	}); err != nil {
		return err
	}
	return d.step("  compare, e2fsck -fn, SHA-256 of every file", func() (string, error) {
		for i, file := range files {
			if err := compareFiles(file, want.disks[i]); err != nil {
				return "", err
			}
		}
		if err := system(ctx, "e2fsck", "-fn", files[0]); err != nil {
			return "", err
		}
		out := filepath.Join(dir, "out")
		if err := os.Mkdir(out, 0o755); err != nil {
			return "", err
		}
		if err := system(ctx, "debugfs", "-R", "rdump / "+out, files[0]); err != nil {
			return "", err
		}
		sums, err := sumTree(out)
		if err != nil {
			return "", err
		}
		if err := sameSums(sums, want.sums); err != nil {
			return "", err
		}
		return fmt.Sprintf("equal: %d files", len(sums)), nil
	})
}

func sameSums(got, want map[string]string) error {
	var errs []error
	for name, sum := range want {
		if got[name] != sum {
			errs = append(errs, fmt.Errorf("%s: checksum %s, want %s", name, got[name], sum))
		}
	}
	for name := range got {
		if want[name] == "" {
			errs = append(errs, fmt.Errorf("%s: not in the original", name))
		}
	}
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d more", len(errs)-5))
	}
	return errors.Join(errs...)
}
