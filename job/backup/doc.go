// Package backup saves the VMs of a pool, and image files, into a repository. Run
// backs up VMs: each VM is planned (job/vmplan), snapshotted, read by the best
// transport that works (changed blocks over NBD, VHD delta, full export), and
// published; marks on the pool come from job/lease. It does not select VMs or
// schedule anything: job/nightly does.
package backup
