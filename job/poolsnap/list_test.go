package poolsnap

import (
	"reflect"
	"testing"

	"xenkeep/xapi"
)

// Row X11 of the fault list: the fields of a record contain UUIDs in place of
// references, in sets and maps, and as keys of maps.
func TestParams(t *testing.T) {
	l := &lister{names: map[xapi.Ref]string{"OpaqueRef:v": "uuid-v", "OpaqueRef:m": "uuid-m", "OpaqueRef:t": "uuid-t"}}
	got, err := l.params([]byte(`{"VIFs":["OpaqueRef:v","OpaqueRef:gone"],"metrics":"OpaqueRef:m","affinity":"OpaqueRef:NULL",
		"current_operations":{"OpaqueRef:t":"snapshot"},"other_config":{"a":"OpaqueRef:v","b":"x"}}`))
	want := Params{
		"VIFs": []any{"uuid-v", "OpaqueRef:gone"}, "metrics": "uuid-m", "affinity": "",
		"current_operations": map[string]any{"uuid-t": "snapshot"}, "other_config": map[string]any{"a": "uuid-v", "b": "x"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n%v, want\n%v", err, got, want)
	}
}
