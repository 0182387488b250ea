package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Row S10 of the fault list: keys in memory reach neither a core dump nor another
// process of the same user. The stories show that everything works in this state:
// mounts, tools and hooks included.
func TestHideMemory(t *testing.T) {
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0)
		_ = unix.Setrlimit(unix.RLIMIT_CORE, &core) // fails without the right to raise it, and does no harm
	})
	hideMemory()
	if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || got != 0 {
		t.Errorf("dumpable: %d, %v", got, err)
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &now); err != nil || now.Cur != 0 || now.Max != 0 {
		t.Errorf("core limit: %+v, %v", now, err)
	}
}
