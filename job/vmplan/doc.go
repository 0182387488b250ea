// Package vmplan examines a VM before its snapshot: its disks, whether they can be
// snapshotted, the kinds of snapshot that are possible, and the space that they need.
package vmplan
