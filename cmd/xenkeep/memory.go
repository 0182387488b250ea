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
	// hugeHeap is how much of the heap may lie in huge pages, which are
	// hugePage bytes each.
	hugeHeap = 256 << 20
	hugePage = 2 << 20
)

// setMemory bounds the heap. Its own variables, where set, come first.
func setMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(75)
	}
	// In a virtual machine the first touch of a page can take 15 us: half a
	// second for what a run uses, a tenth of an incremental backup. Where the
	// kernel gives huge pages to those alone who ask (madvise(2)), ask: what is
	// allocated here is freed at once, untouched, and the advice stays with the
	// addresses, which the heap uses from now on.
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
