package exchange

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/job/transfer"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/xapi"
	"xenkeep/xva"
)

// VmBackup of NAUbackup writes BACKUP_DIR/VM/backup-2026-03-16-(12:30:27)/ with the
// export (VM.xva or VM.xva.gz of the whole VM, or VM.raw or VM.vhd of its first disk),
// vm-metadata.xml or in older releases vm.cfg, DISK-xvda/vdi.cfg and vbd.cfg,
// VIFs/vif-0.cfg, and an empty file "success" at the end
// (github.com/NAUbackup/VmBackup, VmBackup.py: gather_vm_meta, final_cleanup).
var nauFolder = regexp.MustCompile(`^backup-(\d{4})-(\d\d)-(\d\d)-\((\d\d)[:_-](\d\d)[:_-](\d\d)\)$`)

// nauMarks are the files that mark a complete backup; the last three are of exports
// that are compressed afterwards or were restored.
var nauMarks = []string{"success", "success_compress", "success_compressing", "success_restore"}

// nauDate returns the local time when a backup was begun, according to the name of its
// folder.
func nauDate(dir string) (time.Time, bool) {
	m := nauFolder.FindStringSubmatch(filepath.Base(dir))
	if m == nil {
		return time.Time{}, false
	}
	t, err := time.ParseInLocation("20060102150405", strings.Join(m[1:], ""), time.Local)
	return t, err == nil
}

// importFolder imports a tree of VmBackup, the folder of one VM, or one backup.
func (im *importer) importFolder(ctx context.Context, dir string) error {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	var found []string
	if _, ok := nauDate(dir); ok {
		found = append(found, dir)
	} else {
		for _, pattern := range []string{"backup-*", filepath.Join("*", "backup-*")} {
			dirs, err := fs.Glob(os.DirFS(dir), filepath.ToSlash(pattern))
			if err != nil {
				return err
			}
			for _, d := range dirs {
				d = filepath.Join(dir, d)
				if _, ok := nauDate(d); ok {
					found = append(found, d)
				}
			}
		}
	}
	if len(found) == 0 {
		if err := transfer.ForeignFolder(dir); err != nil {
			return err
		}
		return fmt.Errorf("no backups of VmBackup (VM/backup-YYYY-MM-DD-(HH:MM:SS)) in it: %w", ErrNothing)
	}
	sort.Slice(found, func(i, j int) bool {
		a, _ := nauDate(found[i])
		b, _ := nauDate(found[j])
		return a.Before(b) || a.Equal(b) && found[i] < found[j]
	})
	for _, d := range found {
		if ctx.Err() != nil {
			return nil
		}
		if err := im.importNAU(ctx, d); err != nil {
			im.failed(d, err)
		}
	}
	return nil
}

// nauBackup is one backup of VmBackup.
type nauBackup struct {
	dir  string
	date time.Time
	vm   repo.Named
	ova  *xva.OVA // from vm-metadata.xml; nil if there is none
	// disks, by device, from the folders DISK-*
	devices []string
	disks   map[string]map[string]string
}

func (im *importer) importNAU(ctx context.Context, dir string) error {
	whole := false
	for _, mark := range nauMarks {
		if _, err := os.Stat(filepath.Join(dir, mark)); err == nil {
			whole = true
		}
	}
	if !whole {
		im.warn("%s: has no success marker: an unfinished backup, left out", dir)
		return nil
	}
	b, err := readNAU(dir)
	if err != nil {
		return err
	}
	export, err := nauExport(dir)
	if err != nil {
		return err
	}
	if strings.Contains(filepath.Base(export), ".xva") {
		vdis := make(map[string]string)
		for device, cfg := range b.disks {
			vdis[device] = cfg["orig_uuid"]
		}
		return im.importArchive(ctx, export, archiveOptions{date: b.date, vm: b.vm, vdis: vdis, folder: filepath.Dir(dir)})
	}
	return im.importNAUDisk(ctx, b, export)
}

// nauExport returns the file with the data.
func nauExport(dir string) (string, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var found []string
	for _, e := range all {
		name := strings.ToLower(e.Name())
		for _, ending := range []string{".xva", ".xva.gz", ".xva.zst", ".raw", ".vhd"} {
			if !e.IsDir() && strings.HasSuffix(name, ending) {
				found = append(found, filepath.Join(dir, e.Name()))
			}
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d exports (.xva, .xva.gz, .raw, .vhd) in it, one is expected: %w", len(found), ErrNothing)
	}
	return found[0], nil
}

// readCfg parses lines of the form name=value.
func readCfg(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := make(map[string]string)
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		if name, value, ok := strings.Cut(scan.Text(), "="); ok {
			m[strings.TrimSpace(name)] = strings.TrimRight(value, "\r")
		}
	}
	return m, scan.Err()
}

func readNAU(dir string) (*nauBackup, error) {
	b := &nauBackup{dir: dir, disks: make(map[string]map[string]string)}
	b.date, _ = nauDate(dir)
	b.vm.Name = filepath.Base(filepath.Dir(dir))
	text, err := os.ReadFile(filepath.Join(dir, "vm-metadata.xml"))
	switch {
	case err == nil && len(bytes.TrimSpace(text)) > 0:
		if b.ova, err = xva.ParseOVA(text); err != nil {
			return nil, fmt.Errorf("vm-metadata.xml: %w", err)
		}
		if vm := b.ova.VM(""); vm != nil {
			b.vm = repo.Named{UUID: vm.Record.Get("uuid").Text, Name: vm.Record.Get("name_label").Text}
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	cfg, err := readCfg(filepath.Join(dir, "vm.cfg"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if uuid := cfg["orig_uuid"]; uuid != "" && b.vm.UUID == "" {
		b.vm.UUID = uuid
		if cfg["name_label"] != "" {
			b.vm.Name = cfg["name_label"]
		}
	}
	folders, err := filepath.Glob(filepath.Join(escapeGlob(dir), "DISK-*"))
	if err != nil {
		return nil, err
	}
	for _, d := range folders {
		vdi, err := readCfg(filepath.Join(d, "vdi.cfg"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if vbd, err := readCfg(filepath.Join(d, "vbd.cfg")); err == nil {
			vdi["userdevice"] = vbd["userdevice"]
		}
		device := strings.TrimPrefix(filepath.Base(d), "DISK-")
		b.devices = append(b.devices, device)
		b.disks[device] = vdi
	}
	sort.Slice(b.devices, func(i, j int) bool { return xapi.LessDevice(b.devices[i], b.devices[j]) })
	return b, nil
}

// escapeGlob quotes the special characters of filepath.Glob.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

// importNAUDisk imports an export of the first disk, which is the only disk that
// vdi-export saves.
func (im *importer) importNAUDisk(ctx context.Context, b *nauBackup, export string) error {
	// VmBackup uses this name for a raw export: the content of the guest's disk does
	// not matter.
	kind, _, _, err := transfer.KindOf(export, im.o.Raw || strings.EqualFold(filepath.Ext(export), ".raw"))
	if err != nil {
		return err
	}
	src, err := im.openImage(ctx, export, kind)
	if err != nil {
		return err
	}
	defer src.close()
	if src.vhd != nil && src.vhd.IsDelta() {
		return fmt.Errorf("%s: a differencing VHD, not an export of VmBackup: %w", export, ErrChain)
	}
	s, err := im.identity(b.vm, filepath.Dir(b.dir))
	if err != nil {
		return err
	}
	if s.Source, err = transfer.SourceOf(export, kind); err != nil {
		return err
	}
	s.DataTime, s.Complete, s.Kind = im.date(b.date), true, "regular"
	old := im.unchanged(s)
	if old == nil {
		old = im.existing(s, withoutSource)
	}
	if old != nil {
		im.skip(b.dir, old)
		return nil
	}
	d := repo.Disk{Device: "xvda", UserDevice: "0", Size: src.Size(), Reason: "imported from " + filepath.Base(export)}
	for i, device := range b.devices {
		cfg := b.disks[device]
		if i > 0 {
			s.Missing = append(s.Missing, repo.MissingDisk{Device: device, VDI: cfg["orig_uuid"], Reason: "vdi-export of VmBackup saves the first disk only"})
			continue
		}
		d.Device, d.UserDevice, d.VDI, d.Name, d.SR = device, cfg["userdevice"], cfg["orig_uuid"], cfg["name_label"], cfg["orig_sr_uuid"]
		if n, err := strconv.ParseInt(cfg["virtual_size"], 10, 64); err == nil && n != d.Size {
			return fmt.Errorf("%s: a disk of %d bytes, in vdi.cfg it has %d", export, d.Size, n)
		}
	}
	var base chunk.ID
	var roots []chunk.ID
	if last := repo.Latest(im.all, func(x *repo.Snapshot) bool { return job.SameVM(x, s) }); last != nil {
		if old, err := records.SameDisk(last, &d); err == nil {
			base = chunk.ID(old.Root)
			roots = append(roots, base)
		}
	}
	old, err = im.run(ctx, s, roots, func(ctx context.Context, run *backup.Run) error {
		if b.ova != nil && b.ova.VM("") != nil {
			if err := im.records(ctx, run, s, b.ova); err != nil {
				return err
			}
		}
		_, err = im.disk(ctx, run, s, src, d, backup.DiskOptions{Size: d.Size, Base: base}, src.allocated)
		return err
	})
	if err == nil && old != nil {
		im.skip(b.dir, old)
	}
	return err
}

// sortDisks sorts disks by their devices.
func sortDisks(disks []repo.Disk) {
	sort.SliceStable(disks, func(i, j int) bool { return xapi.LessDevice(disks[i].UserDevice, disks[j].UserDevice) })
}
