package job

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"xenkeep/filekind"
)

// ErrForeignImage is returned for files that hold no disk in a form that is read
// here.
var ErrForeignImage = errors.New("not an image that is read here")

// foreignError is a file that is refused because of what it is.
type foreignError struct {
	file string
	why  string // "a VMDK image"
	hint string
	also error // another sentinel that fits; may be nil
}

func (e *foreignError) Error() string {
	return fmt.Sprintf("%s: %s: %v", e.file, e.why, ErrForeignImage)
}

// Hint is the command that makes an image of it that is read.
func (e *foreignError) Hint() string { return e.hint }

func (e *foreignError) Unwrap() []error {
	if e.also == nil {
		return []error{ErrForeignImage}
	}
	return []error{ErrForeignImage, e.also}
}

// sniffImage decides what an open file or device is. raw says that the user calls
// it a raw disk, whatever it looks like. A file whose name promises a format that
// its content has not is refused: it is damaged, or not what the user believes.
func sniffImage(f *os.File, raw bool) (filekind.Kind, error) {
	if raw {
		return filekind.Raw, nil
	}
	size, err := f.Seek(0, io.SeekEnd) // a device's size too
	if err != nil {
		return "", err
	}
	k, err := filekind.Of(f, size, f.Name())
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.Name(), err)
	}
	if named := filekind.Named(f.Name()); k.IsDisk() && !named.IsDisk() {
		if named == filekind.XVA {
			return named, nil // its reader says what is wrong
		}
		return "", &foreignError{
			file: f.Name(), why: "named like " + named.Name() + ", which it is not: it is damaged, or bears a wrong name",
			hint: "get it whole again; --format raw takes it as a raw disk",
		}
	}
	return k, nil
}

// kindOf opens a file to see what it is; dir reports a folder.
func kindOf(file string, raw bool) (k filekind.Kind, st os.FileInfo, dir bool, err error) {
	f, err := openSource(file)
	if err != nil {
		return "", nil, false, err
	}
	defer f.Close()
	if st, err = f.Stat(); err != nil || st.IsDir() {
		return "", st, err == nil, err
	}
	k, err = sniffImage(f, raw)
	return k, st, false, err
}

// foreign refuses a file of a kind that is not read, and says how to convert it.
func foreign(file string, k filekind.Kind) *foreignError {
	e := &foreignError{file: file, why: k.Name(), hint: "--format raw takes it as a raw disk"}
	switch k {
	case filekind.XOAlias:
		e.hint = "export the disk as a VHD in Xen Orchestra, or restore it there and back up the VM"
	case filekind.XOMetadata:
		e.hint = "import the files that it names: its .xva, or its .vhd files, the full one first"
	case filekind.VMDKText, filekind.OVF, filekind.JSON, filekind.VMDKPiece:
		e.hint = ""
	}
	if c := k.Convert(file); c != "" {
		hint := "convert it first: " + c
		if e.hint != "" {
			hint += "; " + e.hint
		}
		e.hint = hint
	}
	return e
}

// foreignFolder refuses a folder that holds a VHD in the form of Xen Orchestra.
func foreignFolder(dir string) error {
	for _, name := range []string{"header", "footer", "bat", "blocks"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return nil
		}
	}
	return &foreignError{
		file: dir, why: "a VHD in the form of a folder, as Xen Orchestra keeps it",
		hint: "export the disk as a VHD in Xen Orchestra, or restore it there and back up the VM",
	}
}

// importFirst refuses what the command import reads and a backup of an image does
// not.
func importFirst(file string, k filekind.Kind) *foreignError {
	e := foreign(file, k)
	e.hint = "xenkeep import " + quoteFile(file) + " reads it"
	switch k {
	case filekind.Gzip, filekind.Zstd:
		e.hint += " where it is an XVA; anything else unpack first: " + k.Convert(file)
	case filekind.QCOW2:
		e.hint += "; or convert it first: " + k.Convert(file)
	}
	return e
}

// quoteFile is a file's name as a word for a shell.
func quoteFile(file string) string { return filekind.Quote(file) }
