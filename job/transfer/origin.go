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

// An image without a name is identified by its origin: the machine and the complete
// path. Two files are two images, whatever their names and dates are. An image that
// the user named is identified by that name, whatever file it comes from.
const (
	namedImage = "image:"   // followed by the name
	imageAt    = "image://" // followed by the machine and the path
)

// originOf returns the place of a file on this machine: its absolute path without
// symbolic links. The path of a device is not resolved, because links to it keep its
// name stable over a reboot.
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

// ImageIdentity returns the VM under which an image is stored.
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

// SourceOf returns data that identify a file and its content without reading it; nil
// for a file that is not regular.
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

// UnnamedBefore returns a message about snapshots that an older version made of an
// image only by the base name of its file; "" if there are none, or if the image
// already has snapshots under its identity.
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
	return fmt.Sprintf("snapshots of %q that an older version made (%d) were identified only by that name, from whatever file: they remain a separate series (%s%s); "+
		"--name %s continues it, and xenkeep forget --vm %s --keep-last N thins it out", vm.Name, old, namedImage, vm.Name,
		QuoteFile(vm.Name), QuoteFile(namedImage+vm.Name))
}

// FooterDate returns the date in a VHD's footer, or zero if it has no plausible one.
// seconds count from 2000. A date more than a day in the future counts from 1970, as
// those of Xen Orchestra do.
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
