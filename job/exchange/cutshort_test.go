package exchange_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/exchange"
	"xenkeep/job/jobtest"
	"xenkeep/qcow2"
	"xenkeep/xapi/xapisim"
	"xenkeep/xva"
)

// Row C3 of the fault list: the import of a truncated file fails with an error that
// reports the truncation, and no snapshot of it is stored.
func TestCutShort(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-nbd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: no %s", tool)
		}
	}
	w := jobtest.New(t, xapisim.Config{})
	raw := jobtest.Image(t, filepath.Join(w.Dir, "b.raw"), 20*jobtest.MiB, 5, 90)
	path := func(name string) string { return filepath.Join(w.Dir, name) }
	jobtest.RunTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path("a.qcow2"))
	jobtest.RunTool(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path("c.qcow2"))
	w.ExportXVA("web", path("a.xva"), "none")
	w.ExportXVA("web", path("a.xva.gz"), "gzip")
	w.ExportXVA("web", path("a.xva.zst"), "zstd")
	for _, c := range []struct {
		file string
		cut  func(size int64) int64 // returns the new length
		want error
	}{
		{"a.qcow2", func(n int64) int64 { return n / 2 }, qcow2.ErrTruncated},
		{"a.qcow2", func(n int64) int64 { return n - 4096 }, qcow2.ErrTruncated},
		{"a.qcow2", func(int64) int64 { return 60 }, qcow2.ErrTruncated},
		{"c.qcow2", func(n int64) int64 { return n / 2 }, qcow2.ErrTruncated},
		{"a.xva", func(n int64) int64 { return n / 2 }, xva.ErrTruncated},
		{"a.xva", func(n int64) int64 { return n - 1024 }, xva.ErrTruncated},
		{"a.xva", func(int64) int64 { return 300 }, xva.ErrTruncated},
		{"a.xva.gz", func(n int64) int64 { return n / 2 }, xva.ErrTruncated},
		{"a.xva.gz", func(n int64) int64 { return n - 4 }, xva.ErrTruncated},
		{"a.xva.gz", func(int64) int64 { return 40 }, xva.ErrTruncated},
		{"a.xva.zst", func(n int64) int64 { return n / 2 }, xva.ErrTruncated},
		{"a.xva.zst", func(n int64) int64 { return n - 2 }, xva.ErrTruncated},
		{"a.xva.zst", func(int64) int64 { return 40 }, xva.ErrTruncated},
	} {
		p, err := os.ReadFile(path(c.file))
		if err != nil {
			t.Fatal(err)
		}
		n := c.cut(int64(len(p)))
		file := path("cut-" + c.file)
		if err := os.WriteFile(file, p[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		sum, err := exchange.Import(t.Context(), w.Repo, []string{file}, exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}})
		if !errors.Is(err, job.ErrFailed) || len(sum.Snapshots) != 0 || len(sum.Failed) != 1 ||
			!errors.Is(sum.Failed[0].Err(), c.want) || !strings.Contains(sum.Failed[0].Error, file) {
			t.Errorf("%s cut to %d of %d: %v %+v, want %v", c.file, n, len(p), err, sum.Failed, c.want)
		}
		// A backup in a folder of VmBackup is treated equally.
		if strings.HasPrefix(c.file, "a.xva") {
			dir := filepath.Join(w.Dir, "tree", "web", "backup-2019-03-16-(12:30:27)")
			_ = os.RemoveAll(dir)
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "success"), nil, 0o600),
				os.WriteFile(filepath.Join(dir, "web"+c.file[1:]), p[:n], 0o600)); err != nil {
				t.Fatal(err)
			}
			sum, err := exchange.Import(t.Context(), w.Repo, []string{dir}, exchange.ImportOptions{Common: job.Common{StateDir: w.Dir}})
			if !errors.Is(err, job.ErrFailed) || len(sum.Failed) != 1 || !errors.Is(sum.Failed[0].Err(), c.want) {
				t.Errorf("folder with %s cut to %d: %v %+v", c.file, n, err, sum.Failed)
			}
		}
	}
	all, _, err := w.Repo.Snapshots(t.Context())
	if err != nil || len(all) != 0 {
		t.Errorf("%d snapshots: %v", len(all), err)
	}
}

// A raw file that shrinks while it is read fails, even if it ends in a hole.
func TestShrinksWhileRead(t *testing.T) {
	for _, data := range []int{0, 5} {
		r := jobtest.NewRepository(t)
		file := jobtest.Image(t, filepath.Join(t.TempDir(), "b.raw"), 20*jobtest.MiB, 5, data)
		o := backup.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file}
		o.Progress = onBegin(func() {
			if err := os.Truncate(file, jobtest.MiB); err != nil {
				t.Error(err)
			}
		})
		_, err := backup.Image(t.Context(), r, o)
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "b.raw") {
			t.Errorf("%d: %v", data, err)
		}
		if all, _, err := r.Snapshots(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("%d snapshots: %v", len(all), err)
		}
	}
}

// onBegin is a Progress that calls a function when a transfer begins.
type onBegin func()

func (f onBegin) Begin(string, int64) job.Meter { f(); return f }

func (f onBegin) Add(int64) {}

func (f onBegin) Done() {}
