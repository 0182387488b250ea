package transfer

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

// ForeignError is a file that is refused because of what it is.
type ForeignError struct {
	File   string
	Why    string // "a VMDK image"
	Advice string
	Also   error // another sentinel that fits; may be nil
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s: %s: %v", e.File, e.Why, ErrForeignImage)
}

// Hint is the command that makes an image of it that is read.
func (e *ForeignError) Hint() string { return e.Advice }

func (e *ForeignError) Unwrap() []error {
	if e.Also == nil {
		return []error{ErrForeignImage}
	}
	return []error{ErrForeignImage, e.Also}
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
		return "", &ForeignError{
			File: f.Name(), Why: "named like " + named.Name() + ", which it is not: it is damaged, or bears a wrong name",
			Advice: "get it whole again; --format raw takes it as a raw disk",
		}
	}
	return k, nil
}

// KindOf opens a file to see what it is; dir reports a folder.
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

// Foreign refuses a file of a kind that is not read, and says how to convert it.
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

// ForeignFolder refuses a folder that holds a VHD in the form of Xen Orchestra.
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

// importFirst refuses what the command import reads and a backup of an image does
// not.
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

// QuoteFile is a file's name as a word for a shell.
func QuoteFile(file string) string { return filekind.Quote(file) }
