package main

import (
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// memoryLimit keeps a run under 512 MiB: the garbage collector works harder
	// from here on.
	memoryLimit = 400 << 20
	// hugeHeap is the part of the heap that may be in huge pages of hugePage
	// bytes.
	hugeHeap = 256 << 20
	hugePage = 2 << 20
)

// setMemory bounds the heap. Go's own variables override it.
func setMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(75)
	}
	// In a virtual machine the first access to a page can take 15 us, which adds
	// up to half a second for a run, a tenth of an incremental backup. Some
	// kernels use huge pages only on request (madvise(2)). The memory that is
	// allocated here is freed immediately, without being accessed, but the advice
	// remains in effect for its addresses, which the heap uses afterwards.
	heap := make([]byte, hugeHeap)
	skip := int(-uintptr(unsafe.Pointer(&heap[0])) & (hugePage - 1))
	_ = unix.Madvise(heap[skip:skip+hugeHeap-hugePage], unix.MADV_HUGEPAGE) // without them all works as well
	heap = nil
	debug.FreeOSMemory()
}

// hideMemory keeps the keys and passwords in this process's memory from others:
// no core dump contains them, and no other process of the same user can read
// them, except with the rights of root. Programs that the process starts write no
// core dumps either, but are readable as before.
func hideMemory() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) // neither call can fail on Linux
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
