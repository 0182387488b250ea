// Package restore writes disks and VMs of a repository to a pool, to files and to
// devices, starts boot drills, and protects VMs whose disks it writes over.
package restore
