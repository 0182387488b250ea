package exchange_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/exchange"
	"xenkeep/job/jobtest"
	"xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/repo/retention"
	"xenkeep/vhd"
	"xenkeep/xapi/xapisim"
)

// twins creates two files of the same name, size and date with different content.
func twins(t *testing.T, dir string, when time.Time) (one, two string) {
	t.Helper()
	for i, vm := range []string{"vm1", "vm2"} {
		if err := os.MkdirAll(filepath.Join(dir, vm), 0o700); err != nil {
			t.Fatal(err)
		}
		file := jobtest.Image(t, filepath.Join(dir, vm, "disk.raw"), 4*jobtest.MiB, uint64(7+i), 90)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			one = file
		} else {
			two = file
		}
	}
	return one, two
}

// Row C4 of the fault list: two images of one name and date are two VMs. A file is
// skipped only if it is proved to be the same.
func TestTwoImagesAreTwoVMs(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	when := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	one, two := twins(t, w.Dir, when)
	sum := w.Import(exchange.ImportOptions{}, one, two)
	if len(sum.Snapshots) != 2 || sum.Snapshots[0].VMUUID == sum.Snapshots[1].VMUUID || sum.Snapshots[0].VMName != "disk.raw" {
		t.Fatalf("%+v", sum)
	}
	for i, file := range []string{one, two} {
		s := w.Snapshot(sum.Snapshots[i].ID)
		if w.RestoredTo(s, "disk.raw") != jobtest.FileSum(t, file) {
			t.Errorf("%s: another disk comes back", file)
		}
		if s.Source == nil || s.Source.Path != file || s.VM.UUID != "image://"+s.Machine+file {
			t.Errorf("%s: VM %+v, source %+v", file, s.VM, s.Source)
		}
	}
	// Again, and through another path to the same file.
	link := filepath.Join(w.Dir, "link")
	if err := os.Symlink(filepath.Dir(one), link); err != nil {
		t.Fatal(err)
	}
	if again := w.Import(exchange.ImportOptions{}, one, two, filepath.Join(link, "disk.raw")); len(again.Snapshots) != 0 || len(again.Warnings) != 3 {
		t.Errorf("again: %+v", again)
	}
	// A file with other content, and the same size and date.
	data, err := os.ReadFile(two)
	if err == nil {
		err = errors.Join(os.WriteFile(one, data, 0o600), os.Chtimes(one, when, when))
	}
	if err != nil {
		t.Fatal(err)
	}
	changed := w.Import(exchange.ImportOptions{}, one)
	if len(changed.Snapshots) != 1 || w.RestoredTo(w.Snapshot(changed.Snapshots[0].ID), "disk.raw") != jobtest.FileSum(t, two) {
		t.Errorf("changed: %+v", changed)
	}
	// If only its date changes, nothing is imported.
	if err := os.Chtimes(one, when.Add(time.Hour), when); err != nil {
		t.Fatal(err)
	}
	if again := w.Import(exchange.ImportOptions{}, one); len(again.Snapshots) != 0 || len(again.Warnings) != 1 {
		t.Errorf("touched: %+v", again)
	}
	// If the user gives both the same name, they are one VM, and nothing is lost.
	named := w.Import(exchange.ImportOptions{Name: "server"}, one, two)
	if one := w.Import(exchange.ImportOptions{Name: "server"}, two); len(one.Snapshots) != 0 {
		t.Errorf("%+v", one)
	}
	// Both files have the same content now: one snapshot.
	if len(named.Snapshots) != 1 || named.Snapshots[0].VMUUID != "image:server" {
		t.Errorf("named: %+v", named)
	}
}

// Row C5 of the fault list: retention of one image does not affect another of the same
// name, nor snapshots that an older version made by the name alone.
func TestRetentionOfImages(t *testing.T) {
	r := jobtest.NewRepository(t)
	dir := t.TempDir()
	one, two := twins(t, dir, time.Now())
	backup := func(file, name string) *job.Summary {
		t.Helper()
		s, err := backup.Image(t.Context(), r, backup.ImageOptions{
			Common: job.Common{StateDir: dir}, File: file, Name: name, Retention: retention.Policy{Last: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// With the name that an older version gave it.
	old := backup(one, "disk.raw")
	if old.Snapshots[0].VMUUID != "image:disk.raw" || len(old.Warnings) != 0 {
		t.Fatalf("%+v", old)
	}
	first := backup(one, "")
	second := backup(two, "")
	for what, s := range map[string]*job.Summary{"first": first, "second": second} {
		if len(s.Forgotten) != 0 || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "--name disk.raw") {
			t.Errorf("%s: forgotten %v, warnings %q", what, s.Forgotten, s.Warnings)
		}
	}
	if again := backup(one, ""); len(again.Forgotten) != 1 || again.Forgotten[0] != first.Snapshots[0].ID || len(again.Warnings) != 0 {
		t.Errorf("again: %+v", again)
	}
	all, _, err := r.Snapshots(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	// Each is found by its UUID, the old one too, and the name alone is ambiguous.
	for _, s := range all {
		if got, err := repo.Resolve(all, "latest:"+s.VM.UUID); err != nil || got != s {
			t.Errorf("%s: %v, %v", s.VM.UUID, got, err)
		}
	}
	if _, err := repo.Resolve(all, "latest:disk.raw"); !errors.Is(err, repo.ErrAmbiguous) {
		t.Errorf("by the name: %v", err)
	}
	// The name continues the old series.
	if named := backup(two, "disk.raw"); len(named.Forgotten) != 1 || named.Forgotten[0] != old.Snapshots[0].ID {
		t.Errorf("named: %+v", named)
	}
}

// Row F1 of the fault list: chains of two disks whose files have the same names and
// dates remain two disks, in any order of imports.
func TestChainsOfOneName(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	a, sumsA := w.ChainOf(filepath.Join(w.Dir, "diskA"), 5, "T1.vhd", "T2.vhd")
	b, sumsB := w.ChainOf(filepath.Join(w.Dir, "diskB"), 6, "T1.vhd", "T2.vhd", "T3.vhd")
	w.Import(exchange.ImportOptions{}, a[0])
	sum := w.Import(exchange.ImportOptions{}, b...)
	if len(sum.Snapshots) != 3 {
		t.Fatalf("%+v", sum)
	}
	check := func(sum *job.Summary, sums []string) {
		t.Helper()
		for i, x := range sum.Snapshots {
			s := w.Snapshot(x.ID)
			if w.RestoredTo(s, s.Disks[0].Device) != sums[i] {
				t.Errorf("day %d of %s differs", i+1, s.VM.UUID)
			}
		}
	}
	check(sum, sumsB)
	// A chain continues at its end.
	more := w.Import(exchange.ImportOptions{}, a...)
	if len(more.Snapshots) != 1 {
		t.Fatalf("%+v", more)
	}
	check(more, sumsA[1:])
	if more.Snapshots[0].VMUUID == sum.Snapshots[0].VMUUID {
		t.Error("two disks are one VM")
	}
	// A delta of one chain after the base of the other.
	s, err := exchange.Import(t.Context(), w.Repo, []string{a[0], b[1]}, exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}})
	if !errors.Is(err, job.ErrPartial) || len(s.Failed) != 1 || !errors.Is(s.Failed[0].Err(), exchange.ErrChain) || !strings.Contains(s.Failed[0].Hint, "--assume-chain") {
		t.Errorf("%v %+v", err, s)
	}
}

// edit changes header and footers of a VHD.
func edit(t *testing.T, file string, change func(h *vhd.Header, f *vhd.Footer)) {
	t.Helper()
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := vhd.DecodeFooter(p[len(p)-512:])
	if err != nil {
		t.Fatal(err)
	}
	h, err := vhd.DecodeHeader(p[f.DataOffset : f.DataOffset+1024])
	if err != nil {
		t.Fatal(err)
	}
	at := f.DataOffset
	change(&h, &f)
	copy(p[at:], h.Encode())
	copy(p, f.Encode())
	copy(p[len(p)-512:], f.Encode())
	if err := os.WriteFile(file, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A delta whose parent is not proved to be the previous file is refused, unless the
// user declares that the order is right.
func TestChainIsProved(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	files, sums := w.ChainOf(filepath.Join(w.Dir, "d"), 5, "base.vhd", "child.vhd")
	sound, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		name   string
		change func(h *vhd.Header, f *vhd.Footer)
		proved bool
	}{
		{"as it is", func(*vhd.Header, *vhd.Footer) {}, true},
		{"no date of the parent", func(h *vhd.Header, _ *vhd.Footer) { h.ParentTime = 0 }, true},
		{"the ID as an older version wrote it", func(h *vhd.Header, _ *vhd.Footer) { h.ParentID[6] = h.ParentID[6]&0x0f | 0x80 }, true},
		{"no parent", func(h *vhd.Header, _ *vhd.Footer) { h.ParentID = vhd.UUID{} }, false},
		{"its own parent", func(h *vhd.Header, f *vhd.Footer) { h.ParentID = f.ID }, false},
		{"another parent", func(h *vhd.Header, _ *vhd.Footer) { h.ParentID[0] ^= 1 }, false},
		{"the parent was changed since", func(h *vhd.Header, _ *vhd.Footer) { h.ParentTime -= 1000 }, false},
		{"XenServer's export", func(h *vhd.Header, f *vhd.Footer) { h.ParentID, f.Creator = vhd.UUID{}, [4]byte([]byte("caml")) }, false},
	} {
		if err := os.WriteFile(files[1], sound, 0o600); err != nil {
			t.Fatal(err)
		}
		edit(t, files[1], c.change)
		o := exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}, Name: c.name, Date: time.Date(2022, 1, 1+i, 0, 0, 0, 0, time.UTC)}
		sum, err := exchange.Import(t.Context(), w.Repo, files, o)
		if c.proved != (err == nil) || !c.proved && (len(sum.Failed) != 1 || !errors.Is(sum.Failed[0].Err(), exchange.ErrChain)) {
			t.Errorf("%s: %v %+v", c.name, err, sum)
		}
		if c.proved {
			continue
		}
		o.AssumeChain = true
		sum = w.Import(o, files...)
		if n := len(sum.Snapshots); n != 1 || len(sum.Warnings) != 2 || w.RestoredTo(w.Snapshot(sum.Snapshots[0].ID), c.name) != sums[1] {
			t.Errorf("%s, assumed: %+v", c.name, sum)
		}
	}
}

// Row F3 of the fault list: an exported VHD has an ID that other programs accept: a
// UUID of version 4 or 5.
func TestExportedVHDIDs(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	files, _ := w.ChainOf(filepath.Join(w.Dir, "d"), 5, "base.vhd", "child.vhd")
	restored := filepath.Join(w.Dir, "restored.vhd")
	s := w.Snapshot("latest")
	if _, err := restore.File(t.Context(), w.Repo, s, &s.Disks[0], restored, restore.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, restored) {
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := vhd.DecodeFooter(p[len(p)-512:])
		if err != nil {
			t.Fatal(err)
		}
		if v := f.ID[6] >> 4; v != 4 && v != 5 || f.ID[8]>>6 != 2 {
			t.Errorf("%s: %s", file, f.ID)
		}
	}
}

// Row F5 of the fault list: a date in a footer that counts from 1970, like Xen
// Orchestra's, is recognized.
func TestFooterDates(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	files, _ := w.ChainOf(filepath.Join(w.Dir, "d"), 5, "base.vhd")
	made := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	touched := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for i, c := range []struct {
		seconds uint32
		want    time.Time
		warned  int
	}{
		{vhd.Time(made), made, 0},
		{uint32(made.Unix()), made, 0},
		{vhd.Time(now.Add(23 * time.Hour)), now.Add(23 * time.Hour), 0},
		{0, touched, 0},
		{1<<32 - 1, touched, 1},
	} {
		edit(t, files[0], func(_ *vhd.Header, f *vhd.Footer) { f.Time = c.seconds })
		if err := os.Chtimes(files[0], touched, touched); err != nil {
			t.Fatal(err)
		}
		o := exchange.ImportOptions{Name: string(rune('a' + i))}
		o.Now = func() time.Time { return now }
		sum := w.Import(o, files[0])
		if s := w.Snapshot(sum.Snapshots[0].ID); !s.DataTime.Equal(c.want) || len(sum.Warnings) != c.warned {
			t.Errorf("%d: %v, want %v; warnings %q", c.seconds, s.DataTime, c.want, sum.Warnings)
		}
	}
}
