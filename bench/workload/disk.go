package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// layout describes the partitioning of a disk.
type layout struct {
	size  int64
	start int64 // of the file system, in sectors
	gpt   bool
	uuid  string
}

// bytes returns the position of the file system.
func (l layout) bytes() (offset, length int64) {
	offset = l.start * sector
	length = l.size - offset
	if l.gpt {
		length -= gptTail * sector
	}
	return offset, length &^ 4095
}

// format creates a sparse disk with an empty ext4 file system.
func format(ctx context.Context, path string, l layout) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(l.size); err != nil {
		return err
	}
	if l.gpt {
		err = writeGPT(f, l.start, l.size)
	} else {
		err = writeMBR(f, 0x83, l.start, l.size)
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	offset, length := l.bytes()
	return MakeExt4(ctx, path, offset, length, l.uuid, "")
}

// MakeExt4 creates an ext4 file system within a file, with the content of a folder
// if one is set. It does not need root.
func MakeExt4(ctx context.Context, path string, offset, length int64, uuid, folder string) error {
	options := "lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed=" + uuid
	if offset > 0 {
		options += ",offset=" + strconv.FormatInt(offset, 10)
	}
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-U", uuid, "-E", options}
	if folder != "" {
		args = append(args, "-d", folder)
	}
	return run(ctx, "mke2fs", append(args, path, strconv.FormatInt(length>>10, 10)+"k")...)
}

// run runs a program of the system; its output is in the error.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, Program(name), args...)
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME="+strconv.FormatInt(epoch.Unix(), 10), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Program finds a program also in folders that are not in the PATH of users.
func Program(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return name
}

// within mounts the disk's file system and calls fn to change it. The kernel writes
// the same data as a guest's kernel would, including the journal.
func within(ctx context.Context, path string, l layout, fn func(root string) error) (err error) {
	root, err := os.MkdirTemp(filepath.Dir(path), "mounted-")
	if err != nil {
		return err
	}
	defer os.Remove(root)
	offset, length := l.bytes()
	if err := run(ctx, "mount", "-t", "ext4", "-o", fmt.Sprintf("loop,offset=%d,sizelimit=%d,noatime,noinit_itable", offset, length), path, root); err != nil {
		return fmt.Errorf("%w (building images needs root and loop devices)", err)
	}
	defer func() {
		tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		err = errors.Join(err, run(tidy, "umount", root))
	}()
	return fn(root)
}

// room returns the free space of the file system at root.
func room(root string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// CopySparse copies an image and keeps its holes.
func CopySparse(ctx context.Context, from, to string) error {
	return run(ctx, "cp", "--sparse=auto", "--reflink=auto", from, to)
}

// fillHoles writes zeros to the holes of the file, so that it has none.
func fillHoles(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for at := int64(0); ; {
		hole, err := f.Seek(at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		data, err := f.Seek(hole, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			data, err = f.Seek(0, io.SeekEnd)
			if err == nil && data == hole {
				return f.Close()
			}
		}
		if err != nil {
			return err
		}
		for at = hole; at < data; {
			n, err := f.WriteAt(zeros[:min(data-at, int64(len(zeros)))], at)
			if err != nil {
				return err
			}
			at += int64(n)
		}
	}
}

// DataBytes returns the number of bytes of a file that are not in holes.
func DataBytes(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var n, at int64
	for {
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		if at, err = f.Seek(data, unix.SEEK_HOLE); err != nil {
			return 0, err
		}
		n += at - data
	}
}
