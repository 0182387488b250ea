package exchange_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/job/exchange"
	"xenkeep/job/jobtest"
	"xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/xapi/xapisim"
	"xenkeep/xva"
)

// An XVA that the pool exported is imported as the same VM, for each version and
// compression and with keep-alive blocks, and can be restored as a VM.
func TestImportXVA(t *testing.T) {
	for _, c := range []struct {
		version xapisim.Version
		zip     string
		config  func(*xapisim.Config)
	}{
		{xapisim.VersionCurrent, "zstd", nil},
		{xapisim.Version82, "gzip", nil},
		{xapisim.Version80, "none", nil},
		{xapisim.VersionCurrent, "none", func(cfg *xapisim.Config) { cfg.XVAWithoutMap, cfg.XVAKeepAlive = true, 2 }},
	} {
		t.Run(fmt.Sprint(c.version, c.zip), func(t *testing.T) {
			cfg := xapisim.Config{Version: c.version, XVAKeepAlive: -1}
			if c.config != nil {
				c.config(&cfg)
			}
			w := jobtest.New(t, cfg)
			file := filepath.Join(w.Dir, "web.xva")
			w.ExportXVA("web", file, c.zip)
			when := time.Date(2020, 5, 6, 7, 8, 9, 0, time.UTC)
			if err := os.Chtimes(file, when, when); err != nil {
				t.Fatal(err)
			}
			sum := w.Import(exchange.ImportOptions{}, file)
			s := w.Snapshot(sum.Snapshots[0].ID)
			// XenServer gives the exported snapshot a UUID of its own.
			if s.VM.Name == "" || !s.DataTime.Equal(when) || s.Origin != exchange.OriginImport || len(s.Disks) != 2 || s.Disks[0].Device != "xvda" {
				t.Errorf("snapshot %+v", s)
			}
			for i, name := range []string{"web0.img", "web1.img"} {
				if got := w.RestoredTo(s, s.Disks[i].Device); got != jobtest.FileSum(t, filepath.Join(w.Dir, name)) {
					t.Errorf("disk %d differs", i)
				}
			}
			out, err := restore.VM(t.Context(), w.Repo, w.Pool, s, restore.VMOptions{Target: restore.Target{SR: w.Sim.Ready().SRs[0].UUID}, Name: "again"}, restore.Options{})
			if err != nil || len(out.Disks) != 2 {
				t.Fatal(out, err)
			}
			vm, err := w.Pool.FindVM(t.Context(), "again")
			if err != nil || len(vm.VIFs) == 0 {
				t.Errorf("VM %+v, %v", vm, err)
			}
			// A second import is skipped; an archive that we exported is the same VM.
			if again := w.Import(exchange.ImportOptions{}, file); len(again.Snapshots) != 0 || len(again.Warnings) != 1 {
				t.Errorf("again: %+v", again)
			}
			ours := filepath.Join(w.Dir, "ours.xva")
			if _, err := exchange.Export(t.Context(), w.Repo, s, ours, nil, exchange.ExportOptions{Format: exchange.FormatXVA}); err != nil {
				t.Fatal(err)
			}
			second := w.Import(exchange.ImportOptions{Date: when.Add(time.Hour)}, ours)
			if d := second.Snapshots[0].Disks; second.Snapshots[0].VMUUID != s.VM.UUID || d[0].New != 0 || d[1].New != 0 {
				t.Errorf("ours: %+v", second.Snapshots[0])
			}
			w.CheckRepository()
		})
	}
}

// A VM that has backups in the repository keeps its identity.
func TestImportJoinsPool(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	first := w.Snapshot(w.Backup(w.Options("web")).Snapshots[0].ID)
	file := filepath.Join(w.Dir, "web.xva")
	if _, err := exchange.Export(t.Context(), w.Repo, first, file, nil, exchange.ExportOptions{Format: exchange.FormatXVA}); err != nil {
		t.Fatal(err)
	}
	sum := w.Import(exchange.ImportOptions{Date: first.DataTime.Add(-24 * time.Hour)}, file)
	s := w.Snapshot(sum.Snapshots[0].ID)
	if s.Origin != "pool" || s.Pool != first.Pool || s.VM != first.VM || s.Disks[0].Root != first.Disks[0].Root || s.Disks[0].VDI != first.Disks[0].VDI {
		t.Errorf("%+v, want as %+v", s, first)
	}
}

// A tree of VmBackup: whole VMs, a VM with only its first disk, an unfinished backup,
// the old and the new form of metadata.
func TestImportNAUbackup(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	v, err := w.Pool.FindVM(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree := filepath.Join(w.Dir, "tree [1]")
	night := func(vm, date string) string { return filepath.Join(tree, vm, "backup-"+date) }
	meta := func(dir string) {
		for _, ref := range v.VBDs {
			b, err := w.Pool.VBD(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if b.Type != "Disk" {
				continue
			}
			d, err := w.Pool.VDI(t.Context(), b.VDI)
			if err != nil {
				t.Fatal(err)
			}
			disk := filepath.Join(dir, "DISK-xvd"+string(rune('a'+b.UserDevice[0]-'0')))
			write(filepath.Join(disk, "vdi.cfg"), fmt.Sprintf("name_label=%s\nname_description=\nvirtual_size=%d\ntype=User\norig_uuid=%s\norig_sr_uuid=x\n", d.NameLabel, d.VirtualSize, d.UUID))
			write(filepath.Join(disk, "vbd.cfg"), "userdevice="+b.UserDevice+"\nbootable=True\n")
		}
		write(filepath.Join(dir, "VIFs", "vif-0.cfg"), "device=0\nMAC=aa:bb\n")
	}
	one := night("web", "2019-03-16-(12:30:27)")
	meta(one)
	w.ExportXVA("web", filepath.Join(one, "web.xva.gz"), "gzip")
	write(filepath.Join(one, "vm.cfg"), "name_label=web\norig_uuid="+v.UUID+"\n")
	write(filepath.Join(one, "success"), "")
	two := night("web", "2019-03-17-(12-30-27)")
	meta(two)
	w.ExportXVA("web", filepath.Join(two, "web.xva"), "none")
	var m strings.Builder
	if err := w.Pool.ExportMetadata(t.Context(), v.Ref, &m); err != nil {
		t.Fatal(err)
	}
	// With the indentation of xmllint.
	text := m.String()[512:]
	text = strings.TrimRight(text, "\x00")
	write(filepath.Join(two, "vm-metadata.xml"), "<?xml version=\"1.0\"?>\n"+strings.ReplaceAll(text, "><", ">\n  <"))
	write(filepath.Join(two, "success_compress"), "")
	three := night("web", "2019-03-18-(12:30:27)")
	meta(three)
	jobtest.CopyFile(t, filepath.Join(three, "web.raw"), filepath.Join(w.Dir, "web0.img"))
	write(filepath.Join(three, "vm-metadata.xml"), text)
	write(filepath.Join(three, "success"), "")
	four := night("web", "2019-03-19-(12:30:27)")
	write(filepath.Join(four, "web.xva"), "half")
	five := night("other", "2019-03-19-(12:30:27)")
	write(filepath.Join(five, "success"), "")

	sum, err := exchange.Import(t.Context(), w.Repo, []string{tree}, exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}})
	if !errors.Is(err, job.ErrPartial) || len(sum.Snapshots) != 3 || len(sum.Failed) != 1 || len(sum.Warnings) != 1 {
		t.Fatalf("%v %+v", err, sum)
	}
	if !strings.Contains(sum.Failed[0].Error, "other") || !strings.Contains(sum.Warnings[0], "success marker") {
		t.Errorf("failed %+v, warnings %q", sum.Failed, sum.Warnings)
	}
	for i, x := range sum.Snapshots {
		s := w.Snapshot(x.ID)
		want := time.Date(2019, 3, 16+i, 12, 30, 27, 0, time.Local)
		if s.VM.UUID != v.UUID || s.VM.Name != "web" || !s.DataTime.Equal(want) {
			t.Errorf("%d: %+v of %v", i, s.VM, s.DataTime)
		}
		if got := w.RestoredTo(s, "xvda"); got != jobtest.FileSum(t, filepath.Join(w.Dir, "web0.img")) {
			t.Errorf("%d: xvda differs", i)
		}
		if i < 2 != (len(s.Disks) == 2) || i == 2 && (len(s.Missing) != 1 || s.Missing[0].Device != "xvdb") {
			t.Errorf("%d: %d disks, missing %v", i, len(s.Disks), s.Missing)
		}
		if i > 0 && x.Disks[0].New != 0 {
			t.Errorf("%d: %d new bytes", i, x.Disks[0].New)
		}
		if _, err := restore.VM(t.Context(), w.Repo, w.Pool, s, restore.VMOptions{Target: restore.Target{SR: w.Sim.Ready().SRs[0].UUID}, Name: fmt.Sprint("n", i)}, restore.Options{}); err != nil {
			t.Errorf("%d: restore: %v", i, err)
		}
	}
	// The folder of one VM, and that of one backup: everything exists already.
	for _, dir := range []string{filepath.Join(tree, "web"), one} {
		if s := w.Import(exchange.ImportOptions{}, dir); len(s.Snapshots) != 0 {
			t.Errorf("%s: imported again", dir)
		}
	}
	w.CheckRepository()
}

func TestImportImages(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	file := jobtest.Image(t, filepath.Join(w.Dir, "a.raw"), 20*jobtest.MiB, 5, 30)
	when := time.Date(2021, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := os.Chtimes(file, when, when); err != nil {
		t.Fatal(err)
	}
	s := w.Snapshot(w.Import(exchange.ImportOptions{Name: "srv"}, file).Snapshots[0].ID)
	if s.VM.UUID != "image:srv" || !s.DataTime.Equal(when) {
		t.Errorf("%+v of %v", s.VM, s.DataTime)
	}
	// Three days as a chain of VHDs: base, child, and grandchild.
	sums := []string{jobtest.FileSum(t, file)}
	snaps := []*repo.Snapshot{s}
	for day := range 2 {
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		jobtest.Scribble(t, f, 20*jobtest.MiB, uint64(50+day), 3)
		if _, err := f.WriteAt(make([]byte, 2*jobtest.MiB), int64(4+4*day)*jobtest.MiB); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		sums = append(sums, jobtest.FileSum(t, file))
		snaps = append(snaps, w.Snapshot(w.Import(exchange.ImportOptions{Name: "srv", Date: when.AddDate(0, 0, day+1)}, file).Snapshots[0].ID))
	}
	var chain []string
	for i, x := range snaps {
		o := exchange.ExportOptions{Format: exchange.FormatVHD, BaseFile: fmt.Sprintf("%d.vhd", i-1)}
		if i > 0 {
			o.Base = snaps[i-1]
		}
		chain = append(chain, filepath.Join(w.Dir, fmt.Sprintf("%d.vhd", i)))
		if _, err := exchange.Export(t.Context(), w.Repo, x, chain[i], nil, o); err != nil {
			t.Fatal(err)
		}
	}
	sum := w.Import(exchange.ImportOptions{Name: "chain"}, chain...)
	if len(sum.Snapshots) != 3 {
		t.Fatalf("%+v", sum)
	}
	for i, x := range sum.Snapshots {
		got := w.Snapshot(x.ID)
		if got.Disks[0].Root != snaps[i].Disks[0].Root || !got.DataTime.Equal(snaps[i].DataTime) || w.RestoredTo(got, "chain") != sums[i] {
			t.Errorf("day %d differs: %v, %v", i, got.DataTime, snaps[i].DataTime)
		}
	}
	fails := func(name string, want error, files ...string) {
		t.Helper()
		sum, err := exchange.Import(t.Context(), w.Repo, files, exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}, Name: name})
		if len(sum.Failed) != 1 || !errors.Is(sum.Failed[0].Err(), want) || err == nil {
			t.Errorf("%s: %v %+v, want %v", name, err, sum.Failed, want)
		}
	}
	fails("no parent", exchange.ErrChain, chain[1])
	fails("wrong parent", exchange.ErrChain, chain[0], chain[2])
	fails("raw between", exchange.ErrChain, chain[0], file, chain[1])
	fails("not there", os.ErrNotExist, filepath.Join(w.Dir, "nosuch"))
	fails("empty folder", exchange.ErrNothing, t.TempDir())
	cut := filepath.Join(w.Dir, "cut.xva")
	w.ExportXVA("web", cut, "none")
	if err := os.Truncate(cut, 9*jobtest.MiB); err != nil {
		t.Fatal(err)
	}
	fails("cut archive", xva.ErrTruncated, cut)
	if err := os.WriteFile(cut, []byte("nothing of the kind"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("no archive", xva.ErrNotXVA, cut)
	w.CheckRepository()
}

func TestImportQCOW2(t *testing.T) {
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	w := jobtest.New(t, xapisim.Config{})
	raw := jobtest.Image(t, filepath.Join(w.Dir, "a.raw"), 20*jobtest.MiB, 5, 30)
	file := filepath.Join(w.Dir, "a.qcow2")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(qemu, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run("convert", "-c", "-O", "qcow2", raw, file)
	s := w.Snapshot(w.Import(exchange.ImportOptions{}, file).Snapshots[0].ID)
	if w.RestoredTo(s, "a.qcow2") != jobtest.FileSum(t, raw) {
		t.Error("differs")
	}
	run("create", "-f", "qcow2", "-b", file, "-F", "qcow2", filepath.Join(w.Dir, "child.qcow2"))
	_, err = exchange.Import(t.Context(), w.Repo, []string{filepath.Join(w.Dir, "child.qcow2")}, exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}})
	if !errors.Is(err, job.ErrFailed) {
		t.Errorf("a child: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	sum, err := exchange.Import(t.Context(), w.Repo, []string{file}, exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}, Name: "x"})
	if !errors.Is(err, job.ErrFailed) || !strings.Contains(sum.Failed[0].Error, "qemu-utils") {
		t.Errorf("without the tool: %v %+v", err, sum)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "xenkeep-*", "nbd")); len(left) != 0 {
		t.Errorf("sockets left: %v", left)
	}
}
