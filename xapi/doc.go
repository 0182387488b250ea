// Package xapi is a client of the management interface of XenServer and XCP-ng
// pools.
//
// A Client is one session with one pool. It uses JSON-RPC 2.0 (and accepts the
// 1.0 error form of older hosts), follows the pool's master when it moves, logs
// in again when the pool has dropped the session, and trusts hosts by
// certificate fingerprint, by a CA, or, if configured so, without any check.
// Records (VM, VDI, SR, ...) keep the JSON from which they were decoded,
// because backups store complete records.
//
// Disks are transferred by plain HTTP requests, not by RPC: an Export is the
// body of one GET, an import is one PUT. The HTTP status of either does not
// show the outcome. Therefore the package creates a task for each transfer, and
// the result of that task is the result of the transfer.
//
// The package does not interpret image formats: the reader of a format decides
// what a stream holds, and whether it is complete.
package xapi
