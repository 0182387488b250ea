// Package xapi is a client of the management interface of XenServer and
// XCP-ng pools.
//
// A Client is one session with one pool. It speaks JSON-RPC 2.0 (and accepts
// the 1.0 error form of older hosts), follows the pool's master, logs in again
// when the pool has forgotten the session, and trusts hosts by certificate
// fingerprint, by a CA, or, when told so, blindly. Records (VM, VDI, SR, ...)
// keep the JSON they came in, because backups store records whole.
//
// Disks travel over plain HTTP requests, not over RPC: an Export is the body of
// one GET, an import one PUT. For both of them the HTTP status says nothing
// about the outcome; a task made by this package does, and every transfer ends
// in that task's verdict.
//
// The package knows nothing of image formats: what a stream holds, and whether
// it is complete, is for the reader of that format to say.
package xapi
