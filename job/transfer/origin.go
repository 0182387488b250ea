package transfer

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"xenkeep/filekind"
	"xenkeep/repo"
)

// Images that are not named go by where they come from: the machine and the whole
// path. Two files are two images, however they are called and dated. An image that
// is named by the user goes by that name, from whatever file it comes.
const (
	namedImage = "image:"   // and the name
	imageAt    = "image://" // and the machine and the path
)

// originOf is where a file is on this machine: its absolute path without symbolic
// links. The path of a device stays as it was given, because the links to it are
// what keeps its name over a reboot.
func originOf(file string) (string, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if st.Mode()&os.ModeDevice != 0 {
		return path, nil
	}
	return filepath.EvalSymlinks(path)
}

// ImageIdentity is the VM as which an image counts.
func ImageIdentity(machine, file, name string) (repo.Named, error) {
	if name != "" {
		return repo.Named{Name: name, UUID: namedImage + name}, nil
	}
	path, err := originOf(file)
	if err != nil {
		return repo.Named{}, err
	}
	return repo.Named{Name: filepath.Base(file), UUID: imageAt + machine + path}, nil
}

// SourceOf is what identifies a file and its content, short of reading it; nil for
// what is no regular file.
func SourceOf(file string, k filekind.Kind) (*repo.Source, error) {
	path, err := originOf(file)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var sys unix.Stat_t
	if !st.Mode().IsRegular() || unix.Stat(path, &sys) != nil {
		return nil, nil
	}
	return &repo.Source{
		Path: path, Format: string(k), Size: st.Size(), Modified: st.ModTime().UTC(),
		Changed: time.Unix(sys.Ctim.Sec, sys.Ctim.Nsec).UTC(), Inode: sys.Ino,
	}, nil
}

// UnnamedBefore says what became of snapshots that an older version made of an
// image by the base name of its file alone; "" where there are none, or the image
// has snapshots of its own already.
func UnnamedBefore(all []*repo.Snapshot, vm repo.Named) string {
	old := 0
	for _, s := range all {
		switch {
		case s.Origin != "image":
		case s.VM.UUID == vm.UUID:
			return ""
		case s.VM.UUID == namedImage+vm.Name:
			old++
		}
	}
	if old == 0 {
		return ""
	}
	return fmt.Sprintf("snapshots of %q that an older version made (%d) went by that name alone, from whatever file: they stay a series of their own (%s%s); "+
		"--name %s goes on with it, and xenkeep forget --vm %s --keep-last N thins it out", vm.Name, old, namedImage, vm.Name,
		QuoteFile(vm.Name), QuoteFile(namedImage+vm.Name))
}

// FooterDate is the date in a VHD's footer, zero where it has none that can be
// true. Seconds count from 2000. A date more than a day ahead is one that counts
// from 1970, as those of Xen Orchestra do.
func FooterDate(seconds uint32, now time.Time) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	limit := now.Add(24 * time.Hour)
	for _, epoch := range []time.Time{time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC), time.Unix(0, 0).UTC()} {
		if d := epoch.Add(time.Duration(seconds) * time.Second); !d.After(limit) {
			return d
		}
	}
	return time.Time{}
}
