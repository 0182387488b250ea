package xva

import (
	"fmt"
	"strconv"
	"strings"
)

// PlainDisk is a disk of a VM that Plain describes.
type PlainDisk struct {
	UUID string
	Name string
	Size int64 // bytes
}

// Plain returns the records of a VM of which only the disks are known: a
// machine that boots from the first disk by its firmware, with one processor, 1
// GiB of memory and no network. It contains every field that servers require
// (xen-api ocaml/idl/datamodel*.ml: those without a default).
func Plain(name, uuid string, disks []PlainDisk) *OVA {
	o := &OVA{Version: record(`hostname=localhost date=2016-05-24 product_version=7.0.0 product_brand=XenServer
		build_number=0 xapi_major=1 xapi_minor=9 export_vsn=2`, nil)}
	vbds := Value{Kind: Array}
	const memory = "1073741824"
	for i := range disks {
		vbds.Items = append(vbds.Items, String(fmt.Sprintf("Ref:%d", 100+2*i)))
	}
	o.Objects = append(o.Objects, Object{"VM", "Ref:1", record(`uuid= user_version=1 is_a_template=no resident_on=NULL affinity=NULL
		memory_overhead=0 memory_target=0 memory_static_max=`+memory+` memory_dynamic_max=`+memory+` memory_dynamic_min=`+memory+`
		memory_static_min=`+memory+` VCPUs_params={} VCPUs_max=1 VCPUs_at_startup=1 actions_after_shutdown=destroy
		actions_after_reboot=restart actions_after_crash=restart consoles=[] VIFs=[] VBDs=[] VUSBs=[] crash_dumps=[] VTPMs=[]
		PV_bootloader= PV_kernel= PV_ramdisk= PV_args= PV_bootloader_args= PV_legacy_args= HVM_boot_policy=BIOS_order
		HVM_boot_params={} platform={} PCI_bus= other_config={} domid=-1 domarch= is_control_domain=no metrics=NULL
		guest_metrics=NULL recommendations= snapshots=[] children=[] VGPUs=[] attached_PCIs=[] power_state=Halted
		allowed_operations=[] current_operations={} name_label= name_description= suspend_VDI=NULL snapshot_of=NULL
		snapshot_time=19700101T00:00:00Z is_a_snapshot=no parent=NULL last_booted_record= HVM_shadow_multiplier=1.0
		secureboot_certificates_state=ok`, map[string]Value{
		"uuid": String(uuid), "name_label": String(name), "VBDs": vbds,
		"HVM_boot_params": {Kind: Struct, Names: []string{"order"}, Items: []Value{String("cd")}},
		"platform": {Kind: Struct, Names: []string{"acpi", "apic", "pae", "nx", "viridian"},
			Items: []Value{String("1"), String("true"), String("true"), String("true"), String("false")}},
	})})
	for i, d := range disks {
		vbd, vdi := fmt.Sprintf("Ref:%d", 100+2*i), fmt.Sprintf("Ref:%d", 101+2*i)
		o.Objects = append(o.Objects,
			Object{"VBD", vbd, record(`uuid= VM=Ref:1 VDI= device= userdevice= bootable=no mode=RW type=Disk storage_lock=no empty=no
				other_config={} status_code=0 status_detail= runtime_properties={} qos_algorithm_type= qos_algorithm_params={}
				qos_supported_algorithms=[] currently_attached=no unpluggable=yes allowed_operations=[] current_operations={}
				metrics=NULL`, map[string]Value{"VDI": String(vdi), "userdevice": String(strconv.Itoa(i)), "bootable": Boolean(i == 0)})},
			Object{"VDI", vdi, record(`uuid= SR=Ref:2 VBDs=[] crash_dumps=[] virtual_size= physical_utilisation=0 type=user sharable=no
				read_only=no other_config={} storage_lock=no managed=yes missing=no parent=NULL snapshots=[] name_label=
				name_description= location= xenstore_data={} sm_config={} is_a_snapshot=no snapshot_of=NULL
				snapshot_time=19700101T00:00:00Z tags=[] allowed_operations=[] current_operations={}`, map[string]Value{
				"uuid": String(d.UUID), "name_label": String(d.Name), "virtual_size": String(strconv.FormatInt(d.Size, 10)),
				"VBDs": {Kind: Array, Items: []Value{String(vbd)}},
			})})
	}
	o.Objects = append(o.Objects, Object{"SR", "Ref:2", record(`uuid= VDIs=[] PBDs=[] virtual_allocation=0 physical_utilisation=0
		physical_size=0 type=ext content_type=user shared=no other_config={} name_label= name_description= tags=[] sm_config={}
		blobs={} allowed_operations=[] current_operations={}`, nil)})
	return o
}

// record builds a struct from name=value words: [] and {} are empty, yes and no
// are booleans, NULL is the null reference; with replaces some of the values.
func record(words string, with map[string]Value) Value {
	var v Value
	for _, w := range strings.Fields(words) {
		name, text, _ := strings.Cut(w, "=")
		x := String(text)
		switch {
		case text == "[]":
			x = Value{Kind: Array}
		case text == "{}":
			x = Value{Kind: Struct}
		case text == "yes", text == "no":
			x = Boolean(text == "yes")
		case text == "NULL":
			x = String(NullRef)
		case isTime(text):
			x.Kind = Time
		case name == "HVM_shadow_multiplier":
			x.Kind = Double
		}
		if r, ok := with[name]; ok {
			x = r
		}
		v.Set(name, x)
	}
	return v
}
