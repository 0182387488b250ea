package transfer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"xenkeep/filekind"
)

// ErrForeignImage is returned for files that contain no disk in a format that xenkeep
// reads.
var ErrForeignImage = errors.New("not an image that is read here")

// ForeignError is the error for a file of a kind that is refused.
type ForeignError struct {
	File   string
	Why    string // for example "a VMDK image"
	Advice string
	Also   error // another sentinel that matches; may be nil
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s: %s: %v", e.File, e.Why, ErrForeignImage)
}

// Hint returns the command that converts the file to an image that can be read.
func (e *ForeignError) Hint() string { return e.Advice }

func (e *ForeignError) Unwrap() []error {
	if e.Also == nil {
		return []error{ErrForeignImage}
	}
	return []error{ErrForeignImage, e.Also}
}

// sniffImage determines the kind of an open file or device. raw means that the user
// declares it to be a raw disk, even if its content looks like another format. A file
// is refused if its name promises a format that its content does not have: it is
// damaged, or another file than the user believes.
func sniffImage(f *os.File, raw bool) (filekind.Kind, error) {
	if raw {
		return filekind.Raw, nil
	}
	size, err := f.Seek(0, io.SeekEnd) // works for devices, too
	if err != nil {
		return "", err
	}
	k, err := filekind.Of(f, size, f.Name())
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.Name(), err)
	}
	if named := filekind.Named(f.Name()); k.IsDisk() && !named.IsDisk() {
		if named == filekind.XVA {
			return named, nil // the reader of this format reports the defect
		}
		return "", &ForeignError{
			File: f.Name(), Why: "named like " + named.Name() + ", which it is not: it is damaged, or has a wrong name",
			Advice: "get it whole again; --format raw takes it as a raw disk",
		}
	}
	return k, nil
}

// KindOf opens a file to determine its kind. dir reports a folder.
func KindOf(file string, raw bool) (k filekind.Kind, st os.FileInfo, dir bool, err error) {
	f, err := OpenSource(file)
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

// Foreign returns the error for a file of a kind that is not read, with a command that
// converts it.
func Foreign(file string, k filekind.Kind) *ForeignError {
	e := &ForeignError{File: file, Why: k.Name(), Advice: "--format raw takes it as a raw disk"}
	switch k {
	case filekind.XOAlias:
		e.Advice = "export the disk as a VHD in Xen Orchestra, or restore it there and back up the VM"
	case filekind.XOMetadata:
		e.Advice = "import the files that it names: its .xva, or its .vhd files, the full one first"
	case filekind.VMDKText, filekind.OVF, filekind.JSON, filekind.VMDKPiece:
		e.Advice = ""
	}
	if c := k.Convert(file); c != "" {
		hint := "convert it first: " + c
		if e.Advice != "" {
			hint += "; " + e.Advice
		}
		e.Advice = hint
	}
	return e
}

// ForeignFolder returns an error for a folder that contains a VHD in the form of Xen
// Orchestra.
func ForeignFolder(dir string) error {
	for _, name := range []string{"header", "footer", "bat", "blocks"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return nil
		}
	}
	return &ForeignError{
		File: dir, Why: "a VHD in the form of a folder, as Xen Orchestra keeps it",
		Advice: "export the disk as a VHD in Xen Orchestra, or restore it there and back up the VM",
	}
}

// importFirst returns an error for a file that the command import reads and a backup
// of an image does not.
func importFirst(file string, k filekind.Kind) *ForeignError {
	e := Foreign(file, k)
	e.Advice = "xenkeep import " + QuoteFile(file) + " reads it"
	switch k {
	case filekind.Gzip, filekind.Zstd:
		e.Advice += " where it is an XVA; anything else unpack first: " + k.Convert(file)
	case filekind.QCOW2:
		e.Advice += "; or convert it first: " + k.Convert(file)
	}
	return e
}

// QuoteFile quotes the name of a file for a shell.
func QuoteFile(file string) string { return filekind.Quote(file) }
