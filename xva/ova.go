package xva

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
)

// NullRef is the null reference.
const NullRef = "OpaqueRef:NULL"

// Object is one record of an archive.
type Object struct {
	Class  string // "VM", "VDI" ...
	ID     string // "Ref:12": the name by which other records in the archive refer to it
	Record Value
}

// OVA is the content of ova.xml: the server that wrote the archive, and the
// records.
type OVA struct {
	Version Value // a struct
	Objects []Object
}

// ParseOVA parses an ova.xml.
func ParseOVA(p []byte) (*OVA, error) {
	v, err := ParseXML(bytes.NewReader(p))
	if err != nil {
		return nil, fmt.Errorf("xva: ova.xml: %v: %w", err, ErrCorrupt)
	}
	objects := v.Get("objects")
	if v.Get("version").Kind != Struct || objects.Kind != Array {
		return nil, fmt.Errorf("xva: ova.xml: no version or no objects: %w", ErrCorrupt)
	}
	o := &OVA{Version: v.Get("version")}
	for _, it := range objects.Items {
		x := Object{Class: it.Get("class").Text, ID: it.Get("id").Text, Record: it.Get("snapshot")}
		if x.Class == "" || x.ID == "" || x.Record.Kind != Struct {
			return nil, fmt.Errorf("xva: ova.xml: an object without class, id or snapshot: %w", ErrCorrupt)
		}
		o.Objects = append(o.Objects, x)
	}
	return o, nil
}

// XML returns the ova.xml.
func (o *OVA) XML() []byte {
	objects := Value{Kind: Array}
	for _, x := range o.Objects {
		objects.Items = append(objects.Items, Value{Kind: Struct, Names: []string{"class", "id", "snapshot"},
			Items: []Value{String(x.Class), String(x.ID), x.Record}})
	}
	return Value{Kind: Struct, Names: []string{"version", "objects"}, Items: []Value{o.Version, objects}}.AppendXML(nil)
}

// Find returns the object with an ID, or nil if there is none.
func (o *OVA) Find(id string) *Object {
	for i := range o.Objects {
		if o.Objects[i].ID == id {
			return &o.Objects[i]
		}
	}
	return nil
}

// Of returns the objects of a class.
func (o *OVA) Of(class string) []*Object {
	var out []*Object
	for i := range o.Objects {
		if o.Objects[i].Class == class {
			out = append(out, &o.Objects[i])
		}
	}
	return out
}

// VM returns the main VM of the archive: the one with this UUID or, if uuid is
// "", the first that is not a snapshot; nil if there is none.
func (o *OVA) VM(uuid string) *Object {
	for _, vm := range o.Of("VM") {
		if uuid == "" && !vm.Record.Get("is_a_snapshot").True() || uuid != "" && vm.Record.Get("uuid").Text == uuid {
			return vm
		}
	}
	if all := o.Of("VM"); uuid == "" && len(all) > 0 {
		return all[0]
	}
	return nil
}

// Disk is a disk whose data the archive contains.
type Disk struct {
	ID   string // of its VDI
	Size int64  // bytes
	VDI  Value
	VBD  Value // empty for a suspend image
}

// Disks returns the disks whose data follow ova.xml, in that order: by their
// IDs as strings. CDs and disks on ISO libraries have no data.
func (o *OVA) Disks() ([]Disk, error) {
	vbds := make(map[string]Value)
	for _, b := range o.Of("VBD") {
		if b.Record.Get("type").Text != "CD" {
			vbds[b.Record.Get("VDI").Text] = b.Record
		}
	}
	var out []Disk
	for _, x := range o.Of("VDI") {
		vbd, ok := vbds[x.ID]
		if !ok && x.Record.Get("type").Text != "suspend" {
			continue
		}
		if sr := o.Find(x.Record.Get("SR").Text); sr != nil && sr.Record.Get("content_type").Text == "iso" {
			continue
		}
		size, err := strconv.ParseInt(x.Record.Get("virtual_size").Text, 10, 64)
		if err != nil || size < 0 || size > maxDisk {
			return nil, fmt.Errorf("xva: ova.xml: disk %s: virtual_size %.30q: %w", x.ID, x.Record.Get("virtual_size").Text, ErrCorrupt)
		}
		out = append(out, Disk{ID: x.ID, Size: size, VDI: x.Record, VBD: vbd})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out, nil
}

// maxDisk is the largest disk size that is accepted: 64 TiB.
const maxDisk = 64 << 40

// Alone converts a server's records of a VM and of other objects to the records
// of an archive of this VM alone, as GET /export would return them: its
// devices, their networks, disks and SRs; halted, without snapshots, and
// without references to objects that are not in the archive (xen-api
// ocaml/xapi/export.ml). Disks for which keep returns no size are omitted; CDs
// stay.
func (o *OVA) Alone(vm *Object, keep func(vdi Value) (size int64, ok bool)) *OVA {
	out := &OVA{Version: o.Version}
	here := map[string]bool{}
	add := func(x *Object) *Object {
		if x == nil || here[x.ID] {
			return nil
		}
		here[x.ID] = true
		out.Objects = append(out.Objects, Object{x.Class, x.ID, x.Record.Clone()})
		return &out.Objects[len(out.Objects)-1]
	}
	rec := vm.Record
	add(vm)
	add(o.Find(rec.Get("metrics").Text))
	add(o.Find(rec.Get("guest_metrics").Text))
	for _, id := range rec.Get("VTPMs").Strings() {
		add(o.Find(id))
	}
	for _, id := range rec.Get("VBDs").Strings() {
		b := o.Find(id)
		if b == nil {
			continue
		}
		vdi := o.Find(b.Record.Get("VDI").Text)
		if b.Record.Get("type").Text != "CD" {
			if vdi == nil {
				continue
			}
			size, ok := keep(vdi.Record)
			if !ok {
				continue
			}
			if x := add(vdi); x != nil {
				x.Record.Set("virtual_size", String(strconv.FormatInt(size, 10)))
			}
		} else {
			add(vdi)
		}
		add(b)
		if vdi != nil {
			add(o.Find(vdi.Record.Get("SR").Text))
		}
	}
	for _, id := range rec.Get("VIFs").Strings() {
		if f := o.Find(id); f != nil {
			add(f)
			add(o.Find(f.Record.Get("network").Text))
		}
	}
	for i := range out.Objects {
		x := &out.Objects[i]
		known(&x.Record, here)
		switch x.Class {
		case "VM":
			for name, v := range map[string]Value{
				"is_a_snapshot": Boolean(false), "snapshot_of": String(NullRef), "parent": String(NullRef), "protection_policy": String(NullRef),
				"snapshots": {Kind: Array}, "consoles": {Kind: Array}, "crash_dumps": {Kind: Array}, "children": {Kind: Array},
				"snapshot_time": {Kind: Time, Text: "19700101T00:00:00Z"}, "power_state": String("Halted"), "suspend_VDI": String(NullRef),
				"is_a_template": Boolean(false), "resident_on": String(NullRef),
			} {
				if x.Record.Has(name) {
					x.Record.Set(name, v)
				}
			}
		case "VBD", "VIF":
			if x.Record.Has("currently_attached") {
				x.Record.Set("currently_attached", Boolean(false))
			}
		case "VDI":
			if x.Record.Has("is_a_snapshot") {
				x.Record.Set("is_a_snapshot", Boolean(false))
			}
		}
	}
	return out
}

// known removes from a record the references to objects that are not in the
// archive.
func known(v *Value, here map[string]bool) {
	gone := func(it Value) bool { return it.Kind == Text && isRef(it.Text) && !here[it.Text] }
	switch v.Kind {
	case Text:
		if gone(*v) {
			v.Text = NullRef
		}
	case Array:
		kept := v.Items[:0]
		for _, it := range v.Items {
			if !gone(it) {
				known(&it, here)
				kept = append(kept, it)
			}
		}
		v.Items = kept
	case Struct:
		for i := range v.Items {
			if name := v.Names[i]; v.Items[i].Kind == Struct && (name == "other_config" || name == "platform" || name == "xenstore_data") {
				continue // free text of users
			}
			known(&v.Items[i], here)
		}
	}
}

func isRef(s string) bool {
	const a, b = "OpaqueRef:", "Ref:"
	return len(s) > len(a) && s[:len(a)] == a || len(s) > len(b) && s[:len(b)] == b
}

// Renamed replaces the references of all objects by IDs in the form that
// servers write, Ref:0 and so on.
func (o *OVA) Renamed() *OVA {
	names := make(map[string]string)
	out := &OVA{Version: o.Version}
	for i, x := range o.Objects {
		names[x.ID] = "Ref:" + strconv.Itoa(i)
		out.Objects = append(out.Objects, Object{x.Class, names[x.ID], x.Record.Clone()})
	}
	for i := range out.Objects {
		rename(&out.Objects[i].Record, names)
	}
	return out
}

func rename(v *Value, names map[string]string) {
	if to, ok := names[v.Text]; ok && v.Kind == Text {
		v.Text = to
	}
	for i := range v.Items {
		rename(&v.Items[i], names)
	}
}
