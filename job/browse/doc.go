// Package browse compares, verifies and serves the disks of snapshots without a
// pool.
package browse
