package xapisim

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"sort"
	"strings"
)

// oldTables are the tables of the smallest database that the first versions
// with rolling upgrades accept (xen-api ocaml/xapi/pool_db_backup.ml).
var oldTables = []string{
	"SR", "pool", "VBD_metrics", "console", "host", "VIF_metrics", "user", "PBD", "pool_patch", "host_metrics", "VLAN", "Bond",
	"VTPM", "event", "VBD", "VM_guest_metrics", "VDI", "VM_metrics", "task", "VM", "crashdump", "network", "PIF", "host_patch",
	"host_crashdump", "SM", "host_cpu", "VIF", "session", "PIF_metrics",
}

// serveDatabase handles GET /pool/xmldbdump: the whole database as XML, without
// a length; during a rolling upgrade, an empty database of an old schema.
func (c *conn) serveDatabase(r *httpRequest) bool {
	p := c.pool
	t := &transfer{c: c, r: r, fault: p.takeStreamFault("/pool/xmldbdump")}
	p.mu.Lock()
	session, temporary, page := c.admit(r, "get_pool_xml_db_sync")
	if page != "" {
		p.mu.Unlock()
		c.write(page)
		return false
	}
	if temporary {
		defer p.logoutLater(session)
	}
	if !c.host.master {
		p.mu.Unlock()
		c.write(internalError(fail("HOST_IS_SLAVE", p.masterAddress()).Error()))
		return false
	}
	t.task = p.taskOf(r, "Dumping database as XML")
	var b []byte
	if p.cfg.RollingUpgrade {
		b = p.emptyDump()
	} else {
		b = p.databaseDump()
	}
	p.mu.Unlock()
	c.write("HTTP/1.1 200 OK\r\nConnection: close\r\n" + noCache + "\r\n")
	var err error
	if f := t.fault; f != nil && f.Code != "" && !f.Cut {
		err = t.faultError()
	} else {
		_, err = io.Copy(t, bytes.NewReader(b))
	}
	if t.cut(err) {
		return false
	}
	p.finish(t.task, "", err)
	if err != nil {
		c.write(internalError(asError(err).Error()))
	}
	return false
}

func manifest(major, minor int, generation uint64) string {
	return fmt.Sprintf(`<manifest><pair key="schema_major_vsn" value="%d"/><pair key="schema_minor_vsn" value="%d"/>`+
		`<pair key="generation_count" value="%d"/></manifest>`, major, minor, generation)
}

func (p *Pool) emptyDump() []byte {
	var b bytes.Buffer
	b.WriteString("<database>" + manifest(5, 35, 103))
	for _, name := range oldTables {
		fmt.Fprintf(&b, `<table name="%s"/>`, name)
	}
	b.WriteString("</database>")
	return b.Bytes()
}

// notPersistent tables appear without rows.
var notPersistent = map[string]bool{"session": true, "task": true, "event": true}

// databaseDump writes the database in the form of the real server: a row's
// fields are attributes, sets and maps are texts in brackets, spaces are
// escaped (xen-api ocaml/database/db_xml.ml, xml_spaces.ml).
func (p *Pool) databaseDump() []byte {
	software, _ := p.cfg.Version.software()
	var major, minor int
	fmt.Sscanf(software["db_schema"].(string), "%d.%d", &major, &minor)
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n<database>" + manifest(major, minor, p.db.gen))
	for _, cls := range p.db.sch.order {
		if cls.hidden {
			continue
		}
		fmt.Fprintf(&b, `<table name="%s">`, cls.name)
		objs := p.db.all(cls.name)
		if notPersistent[cls.name] {
			objs = nil
		}
		sort.Slice(objs, func(i, j int) bool { return objs[i].ref < objs[j].ref })
		for _, o := range objs {
			fmt.Fprintf(&b, `<row ref="%s" __ctime="%d" __mtime="%d"`, o.ref, o.created, o.modified)
			for i, f := range cls.fields {
				if f.hidden {
					continue
				}
				b.WriteString(" " + columnName(f.name) + `="`)
				xml.EscapeText(&b, []byte(protectSpaces(ocamlText(o.vals[i]))))
				b.WriteByte('"')
			}
			b.WriteString("/>")
		}
		b.WriteString("</table>")
	}
	b.WriteString("</database>")
	return b.Bytes()
}

// columnName returns a field's name in the database, where name spaces end with
// two underscores.
func columnName(name string) string {
	for _, space := range []string{"name_", "memory_", "VCPUs_", "PV_", "HVM_", "actions_after_"} {
		if rest, ok := strings.CutPrefix(name, space); ok {
			if space == "actions_after_" {
				return "actions__after_" + rest
			}
			return space + "_" + rest
		}
	}
	return name
}

// protectSpaces escapes the characters that XML would not preserve (xen-api
// ocaml/database/xml_spaces.ml).
func protectSpaces(s string) string {
	return strings.NewReplacer("%", "%%", " ", "%.", "\t", "%t", "\n", "%n", "\r", "%r").Replace(s)
}
