package jobtest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"xenkeep/xapi"
)

// SamePool compares two dumps of a pool, except for the sizes that depend on disk
// contents.
func SamePool(t *testing.T, a, b map[string]map[string]map[string]any) {
	t.Helper()
	for class := range a {
		for ref, rec := range a[class] {
			got, ok := b[class][ref]
			if !ok {
				t.Errorf("%s %s was deleted", class, ref)
				continue
			}
			for field, v := range rec {
				if field == "physical_utilisation" || field == "virtual_allocation" {
					continue
				}
				if !reflect.DeepEqual(v, got[field]) {
					t.Errorf("%s %s: %s is %v, was %v", class, ref, field, got[field], v)
				}
			}
		}
	}
	for class := range b {
		for ref, rec := range b[class] {
			if _, ok := a[class][ref]; !ok {
				t.Errorf("%s %s is new: %v", class, ref, rec["name_label"])
			}
		}
	}
}

// SameVM compares a VM with its earlier state, except for the fields in but.
func (w *World) SameVM(was, is xapi.VM, but ...string) {
	w.T.Helper()
	for what, pair := range map[string][2]any{
		"NVRAM": {was.NVRAM, is.NVRAM}, "platform": {was.Platform, is.Platform}, "HVM_boot_params": {was.HVMBootParams, is.HVMBootParams},
		"tags": {slices.Sorted(slices.Values(was.Tags)), slices.Sorted(slices.Values(is.Tags))}, "blocked_operations": {was.BlockedOperations, is.BlockedOperations},
		"memory": {[]xapi.Int{was.MemoryStaticMax, was.MemoryStaticMin, was.MemoryDynamicMax, was.MemoryDynamicMin}, []xapi.Int{is.MemoryStaticMax, is.MemoryStaticMin, is.MemoryDynamicMax, is.MemoryDynamicMin}},
		"VCPUs":  {was.VCPUsMax, is.VCPUsMax}, "folder": {was.OtherConfig["folder"], is.OtherConfig["folder"]}, "vTPMs": {len(was.VTPMs), len(is.VTPMs)},
		"is_a_template": {false, is.IsATemplate}, "description": {was.NameDescription, is.NameDescription},
	} {
		if !slices.Contains(but, what) && !EqualJSON(pair[0], pair[1]) {
			w.T.Errorf("%s: %v, was %v", what, pair[1], pair[0])
		}
	}
	if is.GenerationID == was.GenerationID && was.GenerationID != "" {
		w.T.Error("generation_id is as it was")
	}
	for k := range is.OtherConfig {
		if strings.HasPrefix(k, "xenkeep:") {
			w.T.Errorf("the VM has the mark %s", k)
		}
	}
}

// EqualJSON reports whether two values have the same JSON text; nil and empty are
// equal.
func EqualJSON(a, b any) bool {
	text := func(v any) string {
		p, _ := json.Marshal(v)
		if s := string(p); s != "null" && s != "{}" && s != "[]" {
			return s
		}
		return ""
	}
	return text(a) == text(b)
}
