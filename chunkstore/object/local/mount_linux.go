package local

import "golang.org/x/sys/unix"

// Magic numbers of network file systems, from statfs(2) and linux/magic.h. FUSE
// is among them, because sshfs and similar file systems cannot be distinguished
// from the others.
var networkMagic = map[uint32]bool{
	unix.NFS_SUPER_MAGIC:  true,
	unix.SMB_SUPER_MAGIC:  true,
	unix.SMB2_SUPER_MAGIC: true,
	unix.CIFS_SUPER_MAGIC: true,
	unix.CEPH_SUPER_MAGIC: true,
	unix.AFS_SUPER_MAGIC:  true,
	unix.CODA_SUPER_MAGIC: true,
	unix.V9FS_MAGIC:       true,
	unix.FUSE_SUPER_MAGIC: true,
}

// onNetwork reports whether path is on a network mount.
func onNetwork(path string) (bool, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, err
		}
		return networkMagic[uint32(st.Type)], nil
	}
}
