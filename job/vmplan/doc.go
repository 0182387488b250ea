// Package vmplan looks at a VM before its snapshot: its disks, whether they can be
// snapshotted, which kinds of snapshot are possible, and the space that they need.
package vmplan
