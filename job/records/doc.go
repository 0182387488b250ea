// Package records reads and writes the records of a pool that are stored with a
// snapshot, from which the VM can be created again.
package records
