package xapisim

import (
	_ "embed"
	"fmt"
	"strings"
	"sync"
)

// Version is the XenServer version that the pool simulates.
type Version string

const (
	Version80      Version = "8.0"     // Citrix Hypervisor 8.0, XCP-ng 8.0
	Version82      Version = "8.2"     // Citrix Hypervisor 8.2, XCP-ng 8.2
	VersionCurrent Version = "current" // also the empty string: xapi 26, August 2026
)

//go:embed since.txt
var sinceText string

// old reports whether the version lacks the features of xapi 21 and later:
// VM.snapshot's third parameter, limits for request heads, qcow2.
func (v Version) old() bool { return v == Version80 || v == Version82 }

// schemas are built once for each version.
var schemas = map[Version]func() (*schema, error){
	"":             loadSchema,
	VersionCurrent: loadSchema,
	Version82:      sync.OnceValues(func() (*schema, error) { return oldSchema(Version82) }),
	Version80:      sync.OnceValues(func() (*schema, error) { return oldSchema(Version80) }),
}

func (v Version) schema() (*schema, error) {
	load := schemas[v]
	if load == nil {
		return nil, fmt.Errorf("version %q: not 8.0, 8.2 or current", string(v))
	}
	return load()
}

// oldSchema returns the data model without its later additions. Later fields
// keep their position; only their calls and their entries in records are
// removed.
func oldSchema(v Version) (*schema, error) {
	s, err := parseSchema(schemaText)
	if err != nil {
		return nil, err
	}
	for n, l := range strings.Split(sinceText, "\n") {
		since, name, ok := strings.Cut(l, " ")
		if !ok || since == "#" || since == "8.2" && v == Version82 {
			continue
		}
		if since != "8.2" && since != "new" {
			return nil, fmt.Errorf("since line %d: %q", n+1, l)
		}
		s.hide(name)
	}
	// The parameter that excludes disks was added in xapi 21.4.
	m := s.methods["VM.snapshot"]
	m.params = m.params[:2]
	names := s.names[:0]
	for _, n := range s.names {
		if s.methods[n] != nil {
			names = append(names, n)
		}
	}
	s.names = names
	return s, nil
}

// hide removes a class, a field or a call from the view of clients.
func (s *schema) hide(name string) {
	cls, member, one := strings.Cut(name, ".")
	c := s.classes[cls]
	if c == nil {
		return
	}
	f := c.byName[member]
	switch {
	case !one:
		c.hidden = true
		for n, m := range s.methods {
			if m.class == c {
				delete(s.methods, n)
			}
		}
	case f != nil:
		f.hidden = true
		for _, verb := range []string{"get_", "set_", "add_to_", "remove_from_", "add_", "remove_"} {
			delete(s.methods, cls+"."+verb+member)
		}
	default:
		delete(s.methods, name)
	}
}

// software returns the hosts' description of themselves: software_version, and
// the minor number of the API.
func (v Version) software() (map[string]any, int64) {
	out := map[string]any{
		"product_version": "8.4.0", "product_version_text": "8", "product_version_text_short": "8", "platform_name": "XCP",
		"platform_version": "3.4.0", "product_brand": "XenServer", "xapi": "26.1", "build_number": "simulated",
		"git_id": "e2ee48d6", "hostname": "localhost", "date": "20260821T00:00:00Z", "xapi_build": "26.1.0", "xen": "4.17",
		"linux": "4.19.0+1", "network_backend": "openvswitch", "db_schema": "5.909",
	}
	change := map[string]any{}
	minor := int64(23)
	switch v {
	case Version82:
		minor = 15
		change = map[string]any{
			"product_version": "8.2.1", "product_version_text": "8.2", "product_version_text_short": "8.2", "platform_version": "3.2.1",
			"product_brand": "Citrix Hypervisor", "xapi": "1.249", "xapi_build": "1.249.0", "xen": "4.13", "date": "2022-01-01", "db_schema": "5.602",
		}
	case Version80:
		minor = 12
		change = map[string]any{
			"product_version": "8.0.0", "product_version_text": "8.0", "product_version_text_short": "8.0", "platform_version": "3.0.0",
			"product_brand": "Citrix Hypervisor", "xapi": "1.160", "xapi_build": "1.160.1", "xen": "4.11", "date": "2019-03-29", "db_schema": "5.200",
		}
	}
	for k, x := range change {
		out[k] = x
	}
	return out, minor
}
