package restore_test

import (
	"strings"
	"testing"

	"xenkeep/xapi/xapisim"
)

// Objects of a pool are found by their UUIDs in lower and upper case.
func TestFindVM(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{})
	if vm, err := w.Pool.FindVM(ctx, strings.ToUpper(w.VM("web").UUID)); err != nil || vm.NameLabel != "web" {
		t.Errorf("%v %s", err, vm.NameLabel)
	}
	if vdi, err := w.Pool.FindVDI(ctx, strings.ToUpper(w.vdi.UUID)); err != nil || vdi.UUID != w.vdi.UUID {
		t.Errorf("%v %s", err, vdi.UUID)
	}
}
