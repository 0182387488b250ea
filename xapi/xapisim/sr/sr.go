// Package sr is the storage side of the simulated pool: storage repositories,
// volumes (the data of VDIs), chains of VHD files with their hidden base
// copies, exports and imports with the semantics of XenServer's vhd-tool, and
// the logs of changed block tracking.
//
// An SR holds Volumes. A Volume is the leaf of a chain of layers, each of which
// represents one VHD file of a real SR: a name, the UUID in its footer, a
// modification time, and data in 2 MiB blocks. The data of a layer are stored
// at their virtual offset in a sparse file, so that a disk of many TiB needs
// space only for the data written to it. The bottom layer of a volume created
// by AddImage also reads from a raw or VHD file, which is never written.
//
// The package depends on neither XAPI nor HTTP: it returns *Error values with
// the storage manager's fault numbers, and its caller converts them to XAPI
// errors.
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
	// A block consists of pagesPerBlock pages.
	pagesPerBlock = blockSize / pageSize

	// MaxVHDSize is the largest virtual size of a VHD volume, 2040 GiB
	// (storage manager, vhdutil.py MAX_VHD_SIZE).
	MaxVHDSize = 2040 << 30
	// minSize is the smallest size that is not rounded up (vhdutil.py).
	minSize = 2 * mib
	// lvmExtent is the unit to which the sizes of logical volumes are rounded
	// (lvutil.py).
	lvmExtent = 4 * mib
	// maxChain is the number of files in a chain at which no further snapshot
	// can be taken (vhdutil.py MAX_CHAIN_SIZE).
	maxChain = 30
	// maxQCOW2 is the largest virtual size of a qcow2 volume, 16381 GiB, and
	// cluster the unit of its sizes (docs.xcp-ng.org, QCOW2 FAQ).
	maxQCOW2 = 16381 << 30
	cluster  = 64 << 10
)

// Fault numbers of the storage manager that this package returns (sm,
// core/XE_SR_ERRORCODES.xml).
const (
	FaultUnimplemented = 38  // SR_BACKEND_FAILURE_38 never appears: xapi converts it to "not implemented"
	FaultNoSpace       = 44  // the SR is full
	FaultCBTRaw        = 66  // CBT was requested for a disk that does not support it
	FaultVDISize       = 79  // size out of range, or shrinking
	FaultChainTooLong  = 109 // the chain has 30 files already
	FaultCBTDiffer     = 459 // CBT logs of incompatible length
	FaultCBTUnrelated  = 460 // CBT logs of which neither follows the other
)

// Error is a fault of the storage manager. Text is the second parameter of
// SR_BACKEND_FAILURE_n on a real host.
type Error struct {
	Fault int
	Text  string
}

func (e *Error) Error() string { return fmt.Sprintf("storage fault %d: %s", e.Fault, e.Text) }

var (
	// ErrIO is wrapped by every failure that xapi reports as VDI_IO_ERROR: the
	// export or import tool failed, for whatever reason.
	ErrIO = errors.New("device I/O errors")
	// ErrHangs is returned by Export.WriteTo at the point where the real
	// vhd-tool sends no more data and never ends: after the last block of a
	// disk whose size is not a multiple of 2 MiB. The connection must stay
	// open, and idle.
	ErrHangs = errors.New("the export tool hangs")
	// ErrNotVHD is returned by Export with a base if the volume or the base is
	// not stored as a VHD.
	ErrNotVHD = errors.New("cannot compute differences on non-VHD images")
	// ErrTooLarge is returned by Export as vhd for a volume larger than
	// MaxVHDSize.
	ErrTooLarge = errors.New("larger than a VHD can be")
	// ErrGone is wrapped if a volume or its data have been destroyed.
	ErrGone = errors.New("volume is gone")
)

// Config describes an SR.
type Config struct {
	// Type is the driver: ext, nfs, smb, file, lvm, lvmoiscsi, lvmohba, iso, udev.
	Type string
	// UUID names the SR in the paths of its files, as parent locators show them.
	UUID string
	// Dir is the folder for the layers' data; it is created if absent. Close
	// removes the files in it.
	Dir string
	// PhysicalSize in bytes; 0 stands for 16 TiB.
	PhysicalSize int64
	// QCOW2 makes the SR store its disks as qcow2 files instead of VHDs: they
	// may be larger, and an export finds only a device for them.
	QCOW2 bool
	// NBDHybrid makes full exports behave as on hosts whose dom0 attaches disks
	// through NBD.
	NBDHybrid bool
	// ZeroScan makes exports of raw volumes omit the blocks that are all zeros,
	// like hosts that attach disks as block devices; newer hosts send all
	// blocks, because an NBD attachment of a raw volume reports no holes.
	ZeroScan bool
}

// SR is one storage repository. It and its volumes are safe for concurrent use.
type SR struct {
	cfg Config

	// mu guards the structure: the set of volumes and the chains of layers.
	// Data are read and written under its read lock, so that a snapshot falls
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

// Close removes all volumes and their data.
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

// Type returns the driver's name.
func (s *SR) Type() string { return s.cfg.Type }

// LVM reports whether volumes are logical volumes: thick, and raw on request.
func (s *SR) LVM() bool {
	switch s.cfg.Type {
	case "lvm", "lvmoiscsi", "lvmohba":
		return true
	}
	return false
}

// vhd reports whether the driver creates VHDs by default.
func (s *SR) vhd() bool { return s.cfg.Type != "iso" && s.cfg.Type != "udev" }

// Stat describes the space of an SR, in bytes.
type Stat struct {
	PhysicalSize int64
	// Utilisation is the space that files or logical volumes occupy.
	Utilisation int64
	// VirtualAllocation is the sum of the sizes of all volumes that are not
	// hidden.
	VirtualAllocation int64
}

// Free returns the unused space.
func (s Stat) Free() int64 { return max(0, s.PhysicalSize-s.Utilisation) }

// Stat returns the SR's use of space.
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

// Create creates an empty volume of at least size bytes. smConfig["type"] =
// "raw" requests one without VHD. Sizes are rounded as by the storage manager:
// VHDs to 2 MiB, logical volumes to 4 MiB, raw files not at all; the limits are
// checked before rounding.
//
// Raw volumes on LVM are initially full of garbage, as on a real SR whose space
// was used before.
func (s *SR) Create(uuid string, size int64, smConfig map[string]string) (*Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.vhd() {
		return nil, &Error{FaultUnimplemented, "The operation is not implemented"}
	}
	return s.create(uuid, size, smConfig["type"] == "raw", nil)
}

// create creates a volume whose only layer uses img, if it is not nil.
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

// room reports whether l may allocate another block. Space on LVM is allocated
// when a volume is created or attached; files grow as they are written.
func (s *SR) room(l *layer) error {
	if !s.LVM() && s.free() < blockSize+512 {
		return fmt.Errorf("write %s: no space left on device", l.name)
	}
	return nil
}

// roundSize applies the driver's rules to a requested size.
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

// AddImage creates a volume whose initial content is the raw or VHD (fixed or
// dynamic) file at path, which is opened and never written: it takes the place
// of the live disk's data, with blocks allocated where the file has data (2 MiB
// around each data extent of a sparse file, or the VHD's BAT). Guest writes are
// stored elsewhere. The size is rounded as in Create, so that on an SR of VHDs
// a disk whose size is not a multiple of 2 MiB ends with zeros; with
// smConfig["type"] = "raw" on a file SR, and on iso and udev, it is the size of
// the file.
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

// newLayer creates a layer without data.
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

// filePath returns the name of a layer's file on a real host.
func (s *SR) filePath(l *layer) string {
	if s.LVM() {
		return "/dev/VG_XenStorage-" + s.cfg.UUID + "/VHD-" + l.name
	}
	return "/var/run/sr-mount/" + s.cfg.UUID + "/" + l.name + ".vhd"
}

// children lists the volumes whose top layer is directly above l.
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
