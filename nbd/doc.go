// Package nbd implements both sides of the Network Block Device protocol.
//
// A Conn is one connection to one export. A Disk reads one export over several
// connections, distributes them over the hosts that serve it, and repeats reads
// that a lost connection did not complete. A Limiter bounds the connections of
// all disks of the process to the number that one host allows (16 for
// XenServer's xapi-nbd). A Server offers Exports: either with all features of
// this package (Modern), or exactly like xapi-nbd, with its limits (XAPI).
//
// The protocol is the fixed newstyle one of the NBD project (doc/proto.md of
// github.com/NetworkBlockDevice/nbd): STARTTLS, EXPORT_NAME, INFO and GO,
// simple and structured replies, and the metadata context base:allocation. The
// subset that xapi-nbd implements is defined by lib/server.ml of
// github.com/xapi-project/nbd and ocaml/nbd/src/main.ml of
// github.com/xapi-project/xen-api.
//
// The package only reads: a client never sends a write, and a server refuses
// every write.
//
// XenServer's export names contain a session reference and are secrets. No
// error of this package contains an export name.
package nbd
