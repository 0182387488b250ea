// Package sr is the storage side of the simulated pool: storage repositories,
// volumes (the data behind VDIs), chains of VHD files with their hidden base
// copies, exports and imports with the semantics of XenServer's vhd-tool, and
// the logs of changed-block tracking.
//
// An SR holds Volumes. A Volume is the leaf of a chain of layers, each of
// which stands for one VHD file of a real SR: a name, the UUID in its footer,
// a modification time, and data at 2 MiB blocks. The data of a layer lie at
// their virtual offset in a sparse file, so that disks of many TiB cost only
// what was written to them. The bottom layer of a volume made by AddImage also
// reads from a raw or VHD file, which is never written.
//
// The package knows neither XAPI nor HTTP: it hands out *Error values that
// carry the storage manager's fault numbers, and its caller makes XAPI errors
// of them.
package sr

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"xenkeep/internal/disk"
)

const (
	mib = 1 << 20
	// blockSize is the unit of allocation: the block of XenServer's VHDs.
	blockSize = disk.BlockSize
	pageSize  = disk.PageSize
	// pagesPerBlock pages make a block.
	pagesPerBlock = blockSize / pageSize

	// MaxVHDSize is the largest virtual size of a VHD volume, 2040 GiB
	// (storage manager, vhdutil.py MAX_VHD_SIZE).
	MaxVHDSize = 2040 << 30
	// minSize is the smallest size that is not rounded up (vhdutil.py).
	minSize = 2 * mib
	// lvmExtent is what logical volumes are rounded to (lvutil.py).
	lvmExtent = 4 * mib
	// maxChain is the number of files in a chain from which no snapshot can
	// be taken any more (vhdutil.py MAX_CHAIN_SIZE).
	maxChain = 30
	// maxQCOW2 is the largest virtual size of a qcow2 volume, 16381 GiB, and
	// cluster the unit of its sizes (docs.xcp-ng.org, QCOW2 FAQ).
	maxQCOW2 = 16381 << 30
	cluster  = 64 << 10
)

// Fault numbers of the storage manager that this package gives
// (sm, core/XE_SR_ERRORCODES.xml).
const (
	FaultUnimplemented = 38  // SR_BACKEND_FAILURE_38 is never seen: xapi makes it "not implemented"
	FaultNoSpace       = 44  // the SR is full
	FaultCBTRaw        = 66  // CBT asked for a disk that cannot have it
	FaultVDISize       = 79  // size out of range, or shrinking
	FaultChainTooLong  = 109 // the chain has 30 files already
	FaultCBTDiffer     = 459 // CBT logs of incompatible length
	FaultCBTUnrelated  = 460 // CBT logs that are not one behind the other
)

// Error is a fault of the storage manager. Text is what a real one puts into
// the second parameter of SR_BACKEND_FAILURE_n.
type Error struct {
	Fault int
	Text  string
}

func (e *Error) Error() string { return fmt.Sprintf("storage fault %d: %s", e.Fault, e.Text) }

var (
	// ErrIO is wrapped by every failure that xapi reports as VDI_IO_ERROR:
	// the export or import tool ended badly, for whatever reason.
	ErrIO = errors.New("device I/O errors")
	// ErrHangs is what Export.WriteTo returns where the real vhd-tool sends
	// no more and never ends: the last block of a disk that is not a multiple
	// of 2 MiB was sent. The connection must stay open, silent.
	ErrHangs = errors.New("the export tool hangs")
	// ErrNotVHD comes from Export with a base when the volume or the base has
	// no VHD behind it.
	ErrNotVHD = errors.New("cannot compute differences on non-VHD images")
	// ErrTooLarge comes from Export as vhd of a volume larger than MaxVHDSize.
	ErrTooLarge = errors.New("larger than a VHD can be")
	// ErrGone is wrapped where a volume was destroyed or its data were.
	ErrGone = errors.New("volume is gone")
)

// Config describes an SR.
type Config struct {
	// Type is the driver: ext, nfs, smb, file, lvm, lvmoiscsi, lvmohba, iso, udev.
	Type string
	// UUID names the SR in the paths of its files, as parent locators show them.
	UUID string
	// Dir is where the layers' data go; made if absent. The files in it are
	// removed by Close.
	Dir string
	// PhysicalSize in bytes; 0 stands for 16 TiB.
	PhysicalSize int64
	// QCOW2 makes the SR keep its disks as qcow2 files instead of VHDs: they may
	// be larger, and an export finds nothing but a device behind them.
	QCOW2 bool
	// NBDHybrid makes full exports as hosts do whose dom0 attaches disks
	// through NBD.
	NBDHybrid bool
	// ZeroScan makes exports of raw volumes leave out the blocks that are all
	// zeros, as hosts do that attach disks as block devices; newer ones send
	// all blocks, because an NBD attachment of a raw volume reports no holes.
	ZeroScan bool
}

// SR is one storage repository. Its methods and those of its volumes may be
// called at once.
type SR struct {
	cfg Config

	// mu guards the shape: which volumes there are and how layers hang
	// together. Data travel under its read side, so that a snapshot falls
	// between two writes and never into one.
	mu      sync.RWMutex
	volumes map[string]*Volume
	logs    map[string]*cbtLog
	layers  int // counts files in Dir, for their names
	closed  bool
}

// New returns an empty SR.
func New(cfg Config) (*SR, error) {
	switch cfg.Type {
	case "ext", "nfs", "smb", "file", "lvm", "lvmoiscsi", "lvmohba", "iso", "udev":
	default:
		return nil, fmt.Errorf("new sr: unknown type %q", cfg.Type)
	}
	if cfg.PhysicalSize == 0 {
		cfg.PhysicalSize = 16 << 40
	}
	if cfg.UUID == "" {
		cfg.UUID = newUUID().String()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("new sr: %w", err)
	}
	return &SR{
		cfg:     cfg,
		volumes: make(map[string]*Volume),
		logs:    make(map[string]*cbtLog),
	}, nil
}

// Close forgets all volumes and removes their data.
func (s *SR) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for id, v := range s.volumes {
		for l := v.top; l != nil; l = l.parent {
			errs = append(errs, l.discard())
		}
		delete(s.volumes, id)
	}
	return errors.Join(errs...)
}

// Type is the driver's name.
func (s *SR) Type() string { return s.cfg.Type }

// LVM tells whether volumes are logical volumes: thick, and raw on demand.
func (s *SR) LVM() bool {
	switch s.cfg.Type {
	case "lvm", "lvmoiscsi", "lvmohba":
		return true
	}
	return false
}

// vhd tells whether the driver makes VHDs unless told otherwise.
func (s *SR) vhd() bool { return s.cfg.Type != "iso" && s.cfg.Type != "udev" }

// Stat is an SR's fill, in bytes.
type Stat struct {
	PhysicalSize int64
	// Utilisation is what files or logical volumes take.
	Utilisation int64
	// VirtualAllocation is the sum of the sizes of all volumes that are not
	// hidden.
	VirtualAllocation int64
}

// Free is the space left.
func (s Stat) Free() int64 { return max(0, s.PhysicalSize-s.Utilisation) }

// Stat returns the SR's fill.
func (s *SR) Stat() Stat {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.stat()
}

func (s *SR) stat() Stat {
	st := Stat{PhysicalSize: s.cfg.PhysicalSize}
	for _, v := range s.volumes {
		st.Utilisation += v.utilisation()
		if !v.hidden && v.top != nil {
			st.VirtualAllocation += v.top.size
		}
	}
	return st
}

// Volume returns the volume of that UUID, or nil.
func (s *SR) Volume(uuid string) *Volume {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.volumes[uuid]
}

// Create makes an empty volume of at least size bytes. smConfig["type"] =
// "raw" asks for one without VHD. Sizes are rounded as the storage manager
// does: VHDs to 2 MiB, logical volumes to 4 MiB, raw files not at all; the
// limits are checked before rounding.
//
// Raw volumes on LVM start full of garbage, as they do where the space was
// used before.
func (s *SR) Create(uuid string, size int64, smConfig map[string]string) (*Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.vhd() {
		return nil, &Error{FaultUnimplemented, "The operation is not implemented"}
	}
	return s.create(uuid, size, smConfig["type"] == "raw", nil)
}

// create makes a volume whose only layer stands on img, if there is one.
func (s *SR) create(uuid string, size int64, raw bool, img *image) (*Volume, error) {
	if s.closed || s.volumes[uuid] != nil {
		return nil, fmt.Errorf("create volume %s: exists or repository closed", uuid)
	}
	size, err := s.roundSize(size, raw)
	if err != nil {
		return nil, err
	}
	v := &Volume{sr: s, uuid: uuid, raw: raw, inflated: s.LVM()}
	v.top = s.newLayer(uuid, size, nil)
	v.top.garbage = raw && s.LVM()
	if img != nil {
		v.top.image = img
		v.top.blocks.Store(img.have.some.count())
	}
	if s.free() < v.utilisation() {
		return nil, errNoSpace()
	}
	s.volumes[uuid] = v
	return v, nil
}

func (s *SR) free() int64 { return s.stat().Free() }

// room tells whether l may take another block. Space on LVM is taken when a
// volume is made or attached; files grow as they are written.
func (s *SR) room(l *layer) error {
	if !s.LVM() && s.free() < blockSize+512 {
		return fmt.Errorf("write %s: no space left on device", l.name)
	}
	return nil
}

// roundSize applies the driver's rules to a wanted size.
func (s *SR) roundSize(size int64, raw bool) (int64, error) {
	if raw && !s.LVM() {
		if size < 0 {
			return 0, &Error{FaultVDISize, "VDI Invalid size"}
		}
		return size, nil
	}
	if s.cfg.QCOW2 && !raw {
		if size < 0 || size > maxQCOW2 {
			return 0, &Error{FaultVDISize, fmt.Sprintf("VDI Invalid size [opterr=VDI size must be between 1 MB and %d MB]", maxQCOW2/mib)}
		}
		return roundUp(max(size, mib), cluster), nil
	}
	if size < 0 || size > MaxVHDSize {
		return 0, &Error{FaultVDISize, fmt.Sprintf("VDI Invalid size [opterr=VDI size must be between 1 MB and %d MB]", MaxVHDSize/mib)}
	}
	size = roundUp(max(size, minSize), blockSize)
	if raw {
		size = roundUp(size, lvmExtent)
	}
	return size, nil
}

func errNoSpace() error { return &Error{FaultNoSpace, "There is insufficient space"} }

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// AddImage makes a volume that starts as the raw or VHD (fixed or dynamic)
// file at path, which is opened and never written: it takes the place of the
// live disk's data, with blocks allocated where the file has data (2 MiB
// around each data extent of a sparse file, or the VHD's BAT). Guest writes go
// elsewhere. The size is rounded as in Create, so that on an SR of VHDs a disk
// that is no multiple of 2 MiB ends in zeros; with smConfig["type"] = "raw" on
// a file SR, and on iso and udev, it is the file's own.
func (s *SR) AddImage(uuid, path string, smConfig map[string]string) (*Volume, error) {
	img, err := openImage(path)
	if err != nil {
		return nil, fmt.Errorf("add image: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.create(uuid, img.size, !s.vhd() || smConfig["type"] == "raw", img)
	if err != nil {
		img.file.Close()
		return nil, err
	}
	return v, nil
}

// newLayer makes a layer without data.
func (s *SR) newLayer(name string, size int64, parent *layer) *layer {
	s.layers++
	return &layer{
		sr:     s,
		path:   filepath.Join(s.cfg.Dir, fmt.Sprintf("%06d-%s", s.layers, name)),
		name:   name,
		footer: newUUID(),
		size:   size,
		parent: parent,
		mtime:  time.Now(),
	}
}

// filePath is the name of a layer's file on a real host.
func (s *SR) filePath(l *layer) string {
	if s.LVM() {
		return "/dev/VG_XenStorage-" + s.cfg.UUID + "/VHD-" + l.name
	}
	return "/var/run/sr-mount/" + s.cfg.UUID + "/" + l.name + ".vhd"
}

// children lists the volumes whose top layer hangs directly below l.
func (s *SR) children(l *layer) []*Volume {
	var out []*Volume
	for _, v := range s.volumes {
		if v.top != nil && v.top.parent == l {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *Volume) int {
		if a.uuid < b.uuid {
			return -1
		}
		return 1
	})
	return out
}
