package qcow2_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"xenkeep/internal/disk/disktest"
	"xenkeep/qcow2"
)

// Files of qemu-img that are damaged at random are judged within the limits of
// time and memory.
func TestDamagedAtRandom(t *testing.T) {
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base"), filepath.Join(dir, "child")
	qemuImg(t, "create", "-f", "qcow2", base, "1M")
	qemuImg(t, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", child)
	for _, file := range []string{base, child} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			head := whole[:min(len(whole), 1024)]
			disktest.TryDamaged(t, 3000, func(p []byte) {
				p = append(p, whole[len(head):]...)
				r := bytes.NewReader(p)
				if h, err := qcow2.ReadHead(r); err == nil {
					_ = h.Whole(r, int64(len(p)))
				}
			}, head)
		})
	}
}
