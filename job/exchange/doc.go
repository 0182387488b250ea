// Package exchange converts between a repository and files of other programs: it
// imports images, archives and folders of VmBackup, and exports raw, VHD, qcow2 and
// XVA files.
package exchange
