package xapi

import "fmt"

// Thick reports whether an SR allocates the full size of each disk when it is
// created, as LVM-based SRs do (sm drivers/LVHDSR.py).
func (s SR) Thick() bool {
	switch s.Type {
	case "lvm", "lvmoiscsi", "lvmohba":
		return true
	}
	return false
}

// IsRaw reports whether a disk is stored without an image format around it.
func (v VDI) IsRaw() bool {
	return v.SMConfig["type"] == "raw" || v.SMConfig["vdi_type"] == "aio" || v.SMConfig["vdi_type"] == "raw"
}

// StoresVHD reports whether an SR stores a disk of its own as a VHD, so that the
// disk reads as zeros where nothing was written and deltas of it can be exported.
func (s SR) StoresVHD(v VDI) bool {
	switch s.Type {
	case "ext", "nfs", "smb", "file", "lvm", "lvmoiscsi", "lvmohba":
	default:
		return false
	}
	format := v.SMConfig["image-format"]
	return !v.IsRaw() && (format == "" || format == "vhd")
}

// ReadsAsZero reports whether a new disk on an SR is certain to read as zeros
// where nothing was written. A raw LVM volume is not, and an unknown driver is
// not assumed to be.
func (s SR) ReadsAsZero(v VDI) bool {
	switch s.Type {
	case "ext", "nfs", "smb", "file":
		return true // a file, in any format
	case "lvm", "lvmoiscsi", "lvmohba":
		return !v.IsRaw()
	}
	f := v.SMConfig["image-format"]
	return f == "qcow2" || f == "vhd"
}

// DeviceName returns the name by which people know a disk of a VM, for example
// "xvda". Before the first boot of a VM the pool reports no device; the position
// then determines the name that the disk will have.
func (b VBD) DeviceName() string {
	if b.Device != "" {
		return b.Device
	}
	var n int
	if _, err := fmt.Sscanf(b.UserDevice, "%d", &n); err == nil && n >= 0 && n < 26 {
		return "xvd" + string(rune('a'+n))
	}
	return b.UserDevice
}

// LessDevice orders device names: xvdb comes before xvdaa.
func LessDevice(a, b string) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}
