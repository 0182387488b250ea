package xapisim

import (
	"math/rand/v2"
	"path/filepath"
	"strings"

	"xenkeep/xapi/xapisim/sr"
)

// driver is an SR driver's description of itself (sm, the DRIVER_INFO and
// CAPABILITIES of drivers/*.py).
type driver struct {
	name, label string
	features    []string
}

var vhdFeatures = []string{
	"SR_PROBE", "SR_UPDATE", "SR_ATTACH", "SR_DETACH", "SR_SCAN", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH",
	"VDI_UPDATE", "VDI_CLONE", "VDI_SNAPSHOT", "VDI_RESIZE", "VDI_MIRROR", "VDI_GENERATE_CONFIG", "VDI_CONFIG_CBT",
	"ATOMIC_PAUSE", "VDI_ACTIVATE", "VDI_DEACTIVATE", "THIN_PROVISIONING",
}

// except returns set without v.
func except(set []string, v string) []string {
	var out []string
	for _, s := range set {
		if s != v {
			out = append(out, s)
		}
	}
	return out
}

var drivers = []driver{
	{"ext", "Local EXT3 VHD", append([]string{"VDI_RESET_ON_BOOT/2"}, vhdFeatures...)},
	{"nfs", "NFS VHD", append([]string{"VDI_RESET_ON_BOOT/2"}, vhdFeatures...)},
	{"smb", "SMB VHD", vhdFeatures},
	{"file", "Local Path VHD", vhdFeatures},
	{"lvm", "Local VHD on LVM", except(vhdFeatures, "THIN_PROVISIONING")},
	{"lvmoiscsi", "LVHD over iSCSI", except(vhdFeatures, "THIN_PROVISIONING")},
	{"lvmohba", "LVHD over FC", except(vhdFeatures, "THIN_PROVISIONING")},
	{"iso", "ISO", []string{"SR_ATTACH", "SR_DETACH", "SR_SCAN", "VDI_ATTACH", "VDI_CREATE", "VDI_DELETE", "VDI_DETACH"}},
	{"udev", "udev", []string{"SR_ATTACH", "SR_DETACH", "SR_SCAN", "SR_UPDATE", "VDI_INTRODUCE", "VDI_ATTACH", "VDI_DETACH", "VDI_UPDATE"}},
	{"dummy", "dummy", []string{"SR_PROBE", "VDI_ACTIVATE", "VDI_ATTACH", "VDI_CLONE", "VDI_CREATE", "VDI_DEACTIVATE", "VDI_DELETE", "VDI_DETACH"}},
}

func (p *Pool) addDrivers() {
	for _, d := range drivers {
		features, caps := map[string]any{}, []any{}
		for _, f := range d.features {
			name, _, two := strings.Cut(f, "/")
			features[name] = int64(1)
			if two {
				features[name] = int64(2)
			}
			caps = append(caps, name)
		}
		file := strings.ToUpper(d.name[:1]) + d.name[1:] + "SR"
		p.db.create("SM", map[string]any{
			"name_label": d.label, "name_description": "SR plugin for " + d.label, "type": d.name, "vendor": "xenkeep",
			"copyright": "", "version": "1.0", "required_api_version": "1.0",
			"capabilities": caps, "features": features, "driver_filename": "/opt/xensource/sm/" + file,
		})
	}
}

// driverOf returns the SM record of a type, or nil.
func (p *Pool) driverOf(kind string) *object {
	for _, o := range p.db.tables["SM"].objs {
		if o.str("type") == kind {
			return o
		}
	}
	return nil
}

func (p *Pool) hasFeature(srObj *object, feature string) bool {
	d := p.driverOf(srObj.str("type"))
	return d != nil && d.mapv("features")[feature] != nil
}

// srOperations returns the allowed operations of an SR: its driver's features.
func (p *Pool) srOperations(srObj *object) []any {
	ops := strs("unplug", "plug", "pbd_create", "update", "pbd_destroy", "scan")
	for _, x := range [][2]string{
		{"VDI_CONFIG_CBT", "vdi_enable_cbt"}, {"VDI_CONFIG_CBT", "vdi_disable_cbt"}, {"VDI_CONFIG_CBT", "vdi_data_destroy"},
		{"VDI_CONFIG_CBT", "vdi_list_changed_blocks"}, {"VDI_RESIZE", "vdi_resize"}, {"VDI_CLONE", "vdi_clone"},
		{"VDI_SNAPSHOT", "vdi_snapshot"}, {"VDI_MIRROR", "vdi_mirror"}, {"VDI_CREATE", "vdi_create"},
		{"VDI_DELETE", "vdi_destroy"}, {"VDI_INTRODUCE", "vdi_introduce"},
	} {
		if p.hasFeature(srObj, x[0]) {
			ops = append(ops, x[1])
		}
	}
	return ops
}

// addSR creates an SR with its storage.
func (p *Pool) addSR(f map[string]any, size int64, qcow2 bool) (*object, error) {
	uuid := newUUID()
	st, err := sr.New(sr.Config{Type: f["type"].(string), UUID: uuid, Dir: filepath.Join(p.dir, "sr-"+uuid), PhysicalSize: size, NBDHybrid: p.cfg.NBDHybrid, ZeroScan: p.cfg.Version.old(), QCOW2: qcow2})
	if err != nil {
		return nil, err
	}
	f["uuid"] = uuid
	o := p.db.create("SR", f)
	p.stores[o.ref] = &storage{sr: st, qcow2: qcow2}
	p.syncSR(o)
	return o, nil
}

func (p *Pool) addPBD(h, srObj *object, config map[string]any, plugged bool) *object {
	return p.db.create("PBD", map[string]any{"host": h.ref, "SR": srObj.ref, "device_config": config, "currently_attached": plugged})
}

// sees reports whether an SR is plugged at a host.
func (p *Pool) sees(h *host, srRef string) bool {
	s := p.db.find("SR", srRef)
	if s == nil {
		return false
	}
	for _, pbd := range p.db.refs("PBD", s.set("PBDs")) {
		if pbd.str("host") == h.ref && pbd.bool("currently_attached") {
			return true
		}
	}
	return false
}

// hostFor returns a random host that can reach all these SRs, or nil.
func (p *Pool) hostFor(srRefs []string) *host {
	var can []*host
	for _, h := range p.hosts {
		ok := true
		for _, s := range srRefs {
			ok = ok && p.sees(h, s)
		}
		if ok {
			can = append(can, h)
		}
	}
	if len(can) == 0 {
		return nil
	}
	return can[rand.IntN(len(can))]
}

func (p *Pool) infraCalls() map[string]handler {
	return map[string]handler{
		"SR.create":                     p.srCreate,
		"SR.scan":                       p.srScan,
		"SR.update":                     p.srUpdate,
		"SR.destroy":                    func(c *call) (any, error) { return p.dropSR(c, true) },
		"SR.forget":                     func(c *call) (any, error) { return p.dropSR(c, false) },
		"SR.set_name_label":             p.setter("name_label"),
		"SR.set_name_description":       p.setter("name_description"),
		"PBD.create":                    p.pbdCreate,
		"PBD.destroy":                   p.pbdDestroy,
		"PBD.plug":                      p.pbdPlug,
		"PBD.unplug":                    p.pbdUnplug,
		"network.create":                p.networkCreate,
		"host.apply_edition":            p.hostApplyEdition,
		"host.get_servertime":           p.hostGetServertime,
		"message.get_all":               func(c *call) (any, error) { return refsOf(p.db.all("message")), nil },
		"message.get_all_records":       func(c *call) (any, error) { return p.records(p.db.all("message")), nil },
		"message.get_all_records_where": p.messageGetAllRecordsWhere,
		"message.get_record":            p.messageGetRecord,
		"message.get_by_uuid":           p.messageGetByUUID,
		"message.create":                p.messageCreate,
		"message.destroy":               p.messageDestroy,
	}
}

// srCreate implements SR.create.
func (p *Pool) srCreate(c *call) (any, error) {
	h := p.db.find("host", c.str(0))
	if h == nil {
		return nil, fail("HOST_OFFLINE", c.str(0))
	}
	kind := c.str(5)
	if p.driverOf(kind) == nil {
		return nil, fail("SR_UNKNOWN_DRIVER", kind)
	}
	size := c.args[2].(int64)
	if size == 0 {
		size = defaultSRSize
	}
	shared := c.args[7].(bool)
	o, err := p.addSR(map[string]any{
		"name_label": c.str(3), "name_description": c.str(4), "type": kind, "content_type": c.str(6),
		"shared": shared, "sm_config": c.args[8],
	}, size, false)
	if err != nil {
		return nil, srError(err, nullRef)
	}
	for _, other := range p.hosts {
		if shared || other.ref == h.ref {
			p.addPBD(p.db.find("host", other.ref), o, c.args[1].(map[string]any), true)
		}
	}
	return o.ref, nil
}

// srScan implements SR.scan.
func (p *Pool) srScan(c *call) (any, error) {
	o, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if _, err := p.store(o.ref); err != nil {
		return nil, err
	}
	p.gc(o.ref)
	for _, vdi := range p.db.refs("VDI", o.set("VDIs")) {
		if !vdi.bool("managed") && !vdi.bool("read_only") { // changes that only a scan notices
			p.db.put(vdi, "read_only", true)
		}
		if vdi.bool("is_a_snapshot") && p.db.find("VDI", vdi.str("snapshot_of")) == nil {
			p.db.put(vdi, "snapshot_of", nullRef) // it was dangling since its disk was destroyed
		}
	}
	return void, nil
}

// srUpdate implements SR.update.
func (p *Pool) srUpdate(c *call) (any, error) {
	o, err := c.object(0)
	if err == nil {
		p.syncSR(o)
	}
	return void, err
}

// pbdCreate implements PBD.create.
func (p *Pool) pbdCreate(c *call) (any, error) {
	f, err := c.construct(0)
	if err != nil {
		return nil, err
	}
	h, err := p.lookup("host", f["host"].(string))
	if err != nil {
		return nil, err
	}
	s, err := p.lookup("SR", f["SR"].(string))
	if err != nil {
		return nil, err
	}
	return p.addPBD(h, s, f["device_config"].(map[string]any), false).ref, nil
}

// pbdDestroy implements PBD.destroy.
func (p *Pool) pbdDestroy(c *call) (any, error) {
	o, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if o.bool("currently_attached") {
		return nil, fail("OPERATION_NOT_ALLOWED", "PBD is currently attached")
	}
	p.db.destroy(o)
	return void, nil
}

// pbdPlug implements PBD.plug.
func (p *Pool) pbdPlug(c *call) (any, error) {
	o, err := c.object(0)
	if err == nil {
		p.db.put(o, "currently_attached", true)
	}
	return void, err
}

// pbdUnplug implements PBD.unplug.
func (p *Pool) pbdUnplug(c *call) (any, error) {
	o, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if s := p.db.find("SR", o.str("SR")); s != nil {
		for _, vdi := range p.db.refs("VDI", s.set("VDIs")) {
			for _, vbd := range p.db.refs("VBD", vdi.set("VBDs")) {
				vm := p.db.find("VM", vbd.str("VM"))
				if vbd.bool("currently_attached") && vm != nil && vm.str("resident_on") == o.str("host") {
					return nil, fail("VDI_IN_USE", vdi.ref, "PBD.unplug")
				}
			}
		}
	}
	p.db.put(o, "currently_attached", false)
	return void, nil
}

// networkCreate implements network.create.
func (p *Pool) networkCreate(c *call) (any, error) {
	f, err := c.construct(0)
	if err != nil {
		return nil, err
	}
	if f["bridge"] == "" {
		p.bridges++
		f["bridge"] = "xapi" + string(rune('0'+p.bridges%10))
	}
	return p.db.create("network", f).ref, nil
}

// hostApplyEdition implements host.apply_edition.
func (p *Pool) hostApplyEdition(c *call) (any, error) {
	o, err := c.object(0)
	if err != nil {
		return nil, err
	}
	p.licensed = true
	p.db.put(o, "edition", c.args[1])
	return void, nil
}

// hostGetServertime implements host.get_servertime.
func (p *Pool) hostGetServertime(c *call) (any, error) {
	if _, err := c.object(0); err != nil {
		return nil, err
	}
	return dateOf(p.now()), nil
}

// messageGetAllRecordsWhere implements message.get_all_records_where.
func (p *Pool) messageGetAllRecordsWhere(c *call) (any, error) {
	return p.records(p.db.all("message")), nil // the real server ignores the expression too
}

// messageGetRecord implements message.get_record.
func (p *Pool) messageGetRecord(c *call) (any, error) {
	o, err := c.object(0)
	if err != nil {
		return nil, err
	}
	return p.view(o), nil
}

// messageGetByUUID implements message.get_by_uuid.
func (p *Pool) messageGetByUUID(c *call) (any, error) {
	if o := p.db.byUUID("message", c.str(0)); o != nil {
		return o.ref, nil
	}
	return nil, fail("UUID_INVALID", "message", c.str(0))
}

// messageCreate implements message.create.
func (p *Pool) messageCreate(c *call) (any, error) {
	return p.db.create("message", map[string]any{
		"name": c.str(0), "priority": c.args[1], "cls": c.args[2], "obj_uuid": c.args[3], "body": c.args[4],
		"timestamp": dateOf(p.now()),
	}).ref, nil
}

// messageDestroy implements message.destroy.
func (p *Pool) messageDestroy(c *call) (any, error) {
	o, err := c.object(0)
	if err == nil {
		p.db.destroy(o)
	}
	return void, err
}

// dropSR removes an SR's record and, if data is set, its data.
func (p *Pool) dropSR(c *call, data bool) (any, error) {
	o, err := c.object(0)
	if err != nil {
		return nil, err
	}
	pbds := p.db.refs("PBD", o.set("PBDs"))
	for _, pbd := range pbds {
		if pbd.bool("currently_attached") {
			return nil, fail("SR_HAS_PBD", o.ref)
		}
	}
	if data && len(o.set("VDIs")) > 0 {
		return nil, fail("SR_NOT_EMPTY")
	}
	for _, vdi := range p.db.refs("VDI", o.set("VDIs")) {
		p.db.destroy(vdi)
	}
	for _, pbd := range pbds {
		p.db.destroy(pbd)
	}
	p.stores[o.ref].sr.Close()
	delete(p.stores, o.ref)
	p.db.destroy(o)
	return void, nil
}
