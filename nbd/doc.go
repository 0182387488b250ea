// Package nbd speaks the Network Block Device protocol, from both ends.
//
// A Conn is one connection to one export. A Disk reads one export over several
// connections, spread over the hosts that serve it, and reads again what a
// lost connection did not deliver. A Limiter keeps all disks of the process
// within what one host allows (16 connections for XenServer's xapi-nbd). A
// Server offers Exports: either everything this package knows (Modern), or
// exactly what xapi-nbd does, with its limits (XAPI).
//
// The protocol is the fixed newstyle one of the NBD project (doc/proto.md of
// github.com/NetworkBlockDevice/nbd): STARTTLS, EXPORT_NAME, INFO and GO,
// simple and structured replies, and the metadata context base:allocation.
// What xapi-nbd makes of it is in lib/server.ml of github.com/xapi-project/nbd
// and ocaml/nbd/src/main.ml of github.com/xapi-project/xen-api.
//
// The package only reads: a client never sends a write, and a server refuses
// every one.
//
// XenServer's export names hold a session reference and are secrets. No error
// of this package contains an export name.
package nbd
