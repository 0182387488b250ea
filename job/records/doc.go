// Package records reads and writes the records of a pool that are stored with a
// snapshot, so that a VM can be created again from them.
package records
