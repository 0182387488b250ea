// Package restore writes disks and VMs of a repository to a pool, to files and to
// devices, runs boot drills, and protects VMs while it overwrites their disks.
package restore
