package xapisim

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// compareHeads compares status lines, and names and values of headers; lengths
// and identifiers may differ.
func compareHeads(want, got []string) (diffs []string) {
	read := func(lines []string) map[string]string {
		m := map[string]string{}
		for _, l := range lines[1:] {
			k, v, _ := strings.Cut(l, ":")
			if k == "" {
				continue
			}
			switch lk := strings.ToLower(k); lk {
			case "content-length", "task-id", "server", "content-disposition":
				v = "?"
			}
			m[k] = strings.TrimSpace(v)
		}
		return m
	}
	if strings.TrimSpace(want[0]) != got[0] {
		diffs = append(diffs, fmt.Sprintf("status: recorded %q, got %q", want[0], got[0]))
	}
	w, g := read(want), read(got)
	for k := range w {
		if w[k] != g[k] {
			diffs = append(diffs, fmt.Sprintf("header %s: recorded %q, got %q", k, w[k], g[k]))
		}
	}
	for k := range g {
		if _, ok := w[k]; !ok {
			diffs = append(diffs, fmt.Sprintf("header %s: not recorded, got %q", k, g[k]))
		}
	}
	return diffs
}

func (r *replay) compareBodies(form string, want, got []byte) []string {
	const marker = "Additional information </h1>"
	switch {
	case bytes.HasPrefix(want, []byte("<html>")):
		w, g := string(want), string(got)
		for _, lib := range []string{"Yojson", "Xmlm", "Jsonrpc"} { // these texts come from libraries
			if i := strings.Index(w, marker); i >= 0 && strings.HasPrefix(w[i+len(marker):], lib) {
				w = w[:i]
				g, _, _ = strings.Cut(g, marker)
			}
		}
		if w != g {
			return []string{fmt.Sprintf("page: recorded %q, got %q", w, g)}
		}
		return nil
	case bytes.HasPrefix(want, []byte("ova.xml\x00")):
		return compareArchives(want, got)
	case bytes.HasPrefix(want, []byte("<?xml")):
		w, err := decodeXMLAnswer(want)
		if err != nil {
			return []string{"recorded: " + err.Error()}
		}
		g, err := decodeXMLAnswer(got)
		if err != nil {
			return []string{err.Error() + ": " + string(got[:min(len(got), 300)])}
		}
		return r.compare("", w, g)
	case len(want) == 0:
		if len(got) > 0 {
			return []string{fmt.Sprintf("body: recorded none, got %q", got)}
		}
		return nil
	}
	var w, g any
	if err := decodeJSON(want, &w); err != nil {
		return []string{"recorded: " + err.Error()}
	}
	if err := decodeJSON(got, &g); err != nil {
		return []string{err.Error()}
	}
	return r.compare("", w, g)
}

func decodeJSON(b []byte, v *any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(v)
}

// decodeXMLAnswer converts an answer to values: a value without a type element
// is a string.
func decodeXMLAnswer(b []byte) (any, error) {
	s := strings.Replace(string(b), "<methodResponse>", "<methodCall><methodName>x</methodName>", 1)
	s = strings.Replace(s, "</methodResponse>", "</methodCall>", 1)
	req, err := parseXMLRPC([]byte(s))
	if err != nil {
		return nil, err
	}
	return req.params[0], nil
}

func compareArchives(want, got []byte) []string {
	read := func(b []byte) (map[string]map[string]any, error) {
		tr := tar.NewReader(bytes.NewReader(b))
		h, err := tr.Next()
		if err != nil || h.Name != "ova.xml" {
			return nil, fmt.Errorf("archive: %v", err)
		}
		x, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		v, err := decodeXMLAnswer([]byte("<methodResponse><params><param>" + string(x) + "</param></params></methodResponse>"))
		if err != nil {
			return nil, err
		}
		out := map[string]map[string]any{"version": v.(map[string]any)["version"].(map[string]any)}
		for _, o := range v.(map[string]any)["objects"].([]any) {
			m := o.(map[string]any)
			out[m["class"].(string)] = m["snapshot"].(map[string]any)
			if !strings.HasPrefix(m["id"].(string), "Ref:") {
				return nil, fmt.Errorf("id %v", m["id"])
			}
		}
		return out, nil
	}
	w, err := read(want)
	if err != nil {
		return []string{"recorded: " + err.Error()}
	}
	g, err := read(got)
	if err != nil {
		return []string{err.Error()}
	}
	var diffs []string
	for cls, rec := range w {
		if g[cls] == nil {
			diffs = append(diffs, "no "+cls)
			continue
		}
		diffs = append(diffs, sameKeys(cls, rec, g[cls])...)
	}
	return diffs
}

func sameKeys(at string, w, g map[string]any) (diffs []string) {
	for k := range w {
		if _, ok := g[k]; !ok {
			diffs = append(diffs, at+": missing "+k)
		}
	}
	for k := range g {
		if _, ok := w[k]; !ok {
			diffs = append(diffs, at+": surplus "+k)
		}
	}
	return diffs
}

// exact are the fields whose values the replay compares too.
var exact = map[string]bool{
	"power_state": true, "is_a_snapshot": true, "is_a_template": true, "is_control_domain": true, "managed": true, "status": true,
	"progress": true, "snapshot_of": true, "parent": true, "type": true, "mode": true, "empty": true, "cbt_enabled": true,
	"snapshot_info": true, "virtual_size": true, "name_label": true, "domid": true, "read_only": true, "userdevice": true,
	"currently_attached": true, "schedule": true, "retained_snapshots": true, "error_info": true, "missing": true,
	"snapshot_schedule": true, "suspend_VDI": true, "ha_always_run": true, "bootable": true, "unpluggable": true, "VDI": true,
	"blocked_operations": true, "memory_overhead": true, "frequency": true, "enabled": true, "type_": true,
	"MAC_autogenerated": true, "locking_mode": true, "content_type": true, "shared": true, "class": true, "operation": true,
	"timestamp": false, "is_vmss_snapshot": true, "affinity": true, "resident_on": true, "memory_target": true,
}

// compare compares two answers recursively: kinds and field sets must be equal;
// codes and the fields in exact also in value. It records which simulated
// reference corresponds to a recorded one.
func (r *replay) compare(at string, w, g any) []string {
	if kindOf(w) != kindOf(g) {
		return []string{fmt.Sprintf("%s: recorded %s, got %s: %s", at, kindOf(w), kindOf(g), short(g))}
	}
	switch wv := w.(type) {
	case map[string]any:
		return r.compareMaps(at, wv, g.(map[string]any))
	case []any:
		gv := g.([]any)
		if strings.HasSuffix(at, ".error") || strings.HasSuffix(at, ".data") || strings.HasSuffix(at, ".ErrorDescription") {
			return r.compareParams(at, wv, gv)
		}
		if strings.HasSuffix(at, ".events") {
			return r.compareEvents(at, wv, gv)
		}
		if len(wv) > 0 && len(gv) > 0 {
			return r.compare(at+"[]", wv[0], gv[0])
		}
	case string:
		if !strings.HasSuffix(at, ".VDIs[]") && !strings.HasSuffix(at, "result[]") && !strings.HasSuffix(at, "Value[]") {
			r.learn(wv, g.(string)) // lists of all objects have no defined order
		}
	}
	return nil
}

// compareEvents expects the same number of events if there are few; otherwise
// it expects one event of each recorded class and operation.
func (r *replay) compareEvents(at string, w, g []any) (diffs []string) {
	key := func(e any) string {
		m := e.(map[string]any)
		return fmt.Sprint(m["class"], " ", m["operation"])
	}
	if len(w) < 4 && len(w) != len(g) {
		return []string{fmt.Sprintf("%s: recorded %d, got %d", at, len(w), len(g))}
	}
	got := map[string]any{}
	for _, e := range g {
		got[key(e)] = e
	}
	seen := map[string]bool{}
	for _, e := range w {
		k := key(e)
		if seen[k] || k == "driver_variant add" || k == "host_driver add" { // drivers of the kernel in the recording
			continue
		}
		seen[k] = true
		if got[k] == nil {
			if k != "task del" { // an event about an object that the client has never seen
				diffs = append(diffs, at+": none of "+k)
			}
			continue
		}
		a, b := e.(map[string]any), got[k].(map[string]any)
		diffs = append(diffs, sameKeys(at+" "+k, a, b)...)
		diffs = append(diffs, sameKinds(at+" "+k, a, b)...)
		if sa, ok := a["snapshot"].(map[string]any); ok {
			sb, _ := b["snapshot"].(map[string]any)
			diffs = append(diffs, sameKeys(at+" "+k, sa, sb)...)
			diffs = append(diffs, sameKinds(at+" "+k, sa, sb)...)
		}
	}
	return diffs
}

func (r *replay) learn(w, g string) {
	if _, known := r.toSim[w]; !known && w != nullRef && refPattern.FindString(w) == w && w != "" {
		if strings.HasPrefix(w, "OpaqueRef:") == strings.HasPrefix(g, "OpaqueRef:") {
			r.toSim[w] = g
		}
	}
}

func (r *replay) compareParams(at string, w, g []any) []string {
	ws, gs := r.translate([]byte(fmt.Sprintf("%q", w))), []byte(fmt.Sprintf("%q", g))
	if bytes.Contains(ws, []byte("trackid=")) { // a random number
		ws, _, _ = bytes.Cut(ws, []byte("trackid="))
		gs, _, _ = bytes.Cut(gs, []byte("trackid="))
	}
	if !bytes.Equal(ws, gs) {
		return []string{fmt.Sprintf("%s: recorded %s, got %s", at, ws, gs)}
	}
	return nil
}

func (r *replay) compareMaps(at string, w, g map[string]any) (diffs []string) {
	// Records by reference: compare those that are known to correspond, or else
	// any two.
	if byRef(w) && byRef(g) {
		compared := false
		for _, ref := range sortedKeys(w) {
			if sim := r.toSim[ref]; g[sim] != nil {
				diffs = append(diffs, r.compare(at+"{"+ref[10:14]+"}", w[ref], g[sim])...)
				compared = true
			}
		}
		if !compared && len(w) > 0 {
			if len(g) == 0 {
				return []string{fmt.Sprintf("%s: recorded %d objects, got none", at, len(w))}
			}
			a, b := w[sortedKeys(w)[0]].(map[string]any), g[sortedKeys(g)[0]].(map[string]any)
			return append(sameKeys(at, a, b), sameKinds(at, a, b)...)
		}
		return diffs
	}
	if freeKeys[lastField(at)] {
		if exact[lastField(at)] {
			if ws, gs := r.translate([]byte(fmt.Sprint(w))), fmt.Sprint(g); string(ws) != gs {
				return []string{fmt.Sprintf("%s: recorded %s, got %s", at, ws, gs)}
			}
		}
		return nil
	}
	diffs = sameKeys(at, w, g)
	for _, k := range sortedKeys(w) {
		gv, ok := g[k]
		if !ok {
			continue
		}
		sub := r.compare(at+"."+k, w[k], gv)
		diffs = append(diffs, sub...)
		if ws, ok := w[k].(string); ok && len(sub) == 0 && k == "message" && strings.HasSuffix(at, ".error") && ws != gv {
			diffs = append(diffs, fmt.Sprintf("%s: recorded %s, got %v", at, ws, gv))
		}
		if k == "memory_overhead" && w["hostname"] != nil {
			continue // according to the README, a host's memory is not golden
		}
		scalar := kindOf(w[k]) != "array" && kindOf(w[k]) != "object"
		if exact[k] && scalar && len(sub) == 0 {
			if ws, gs := string(r.translate([]byte(fmt.Sprint(w[k])))), fmt.Sprint(gv); ws != gs && !r.unknown(w[k]) {
				diffs = append(diffs, fmt.Sprintf("%s.%s: recorded %s, got %s", at, k, ws, gs))
			}
		}
	}
	if at == "" {
		for _, k := range []string{"Status"} {
			if w[k] != g[k] {
				diffs = append(diffs, fmt.Sprintf("%s: recorded %v, got %v", k, w[k], g[k]))
			}
		}
	}
	if res, ok := w["result"]; ok && at == "" && len(diffs) == 0 {
		diffs = append(diffs, r.compareResult(res, g["result"])...)
	}
	if res, ok := w["Value"]; ok && at == "" && len(diffs) == 0 {
		diffs = append(diffs, r.compareResult(res, g["Value"])...)
	}
	return diffs
}

// compareResult compares results that are plain values.
func (r *replay) compareResult(w, g any) []string {
	switch kindOf(w) {
	case "object":
		return nil
	case "array":
		return compareLists(w.([]any), g.([]any))
	}
	if s := fmt.Sprint(w); refPattern.MatchString(s) || tokenPattern.MatchString(s) || strings.HasPrefix(s, "20") && strings.HasSuffix(s, "Z") {
		return nil
	}
	if fmt.Sprint(w) != fmt.Sprint(g) {
		return []string{fmt.Sprintf("result: recorded %v, got %v", w, g)}
	}
	return nil
}

// compareLists compares lists of words as sets, and lists of references by
// whether they are empty.
func compareLists(w, g []any) []string {
	if (len(w) == 0) != (len(g) == 0) {
		return []string{fmt.Sprintf("result: recorded %d elements, got %d", len(w), len(g))}
	}
	set := func(l []any) map[string]bool {
		m := map[string]bool{}
		for _, v := range l {
			m[refPattern.ReplaceAllString(fmt.Sprint(v), "ref")] = true
		}
		return m
	}
	var diffs []string
	ws, gs := set(w), set(g)
	for k := range ws {
		if !gs[k] {
			diffs = append(diffs, "result: lacks "+k)
		}
	}
	for k := range gs {
		if !ws[k] {
			diffs = append(diffs, "result: surplus "+k)
		}
	}
	return diffs
}

// unknown reports whether a recorded reference has no counterpart yet.
func (r *replay) unknown(v any) bool {
	s, ok := v.(string)
	return ok && refPattern.FindString(s) == s && s != "" && r.toSim[s] == ""
}

// freeKeys are maps whose keys are data.
var freeKeys = map[string]bool{
	"other_config": true, "sm_config": true, "xenstore_data": true, "platform": true, "HVM_boot_params": true, "VCPUs_params": true,
	"current_operations": true, "blocked_operations": true, "bios_strings": true, "last_boot_CPU_flags": true, "snapshot_info": true,
	"software_version": true, "restrictions": true, "license_params": true, "cpu_info": true, "device_config": true, "features": true,
	"configuration": true, "license_server": true, "schedule": true, "VCPUs_utilisation": true, "runtime_properties": true,
	"guest_agent_config": true, "blobs": true, "gui_config": true, "NVRAM": true, "VCPUs_CPU": true, "VCPUs_flags": true,
	"recommendations": true, "logging": true, "chipset_info": true, "bios-strings": true, "numa_node_memory": true,
	"API_version_vendor_implementation": true, "cpu_configuration": true, "external_auth_configuration": true,
	"health_check_config": true, "ha_configuration": true, "assigned_ips": true, "qos_algorithm_params": true,
}

func lastField(at string) string { return at[strings.LastIndexByte(at, '.')+1:] }

func byRef(m map[string]any) bool {
	for k, v := range m {
		if _, ok := v.(map[string]any); !ok || !strings.HasPrefix(k, "OpaqueRef:") {
			return false
		}
	}
	return len(m) > 0
}

func sameKinds(at string, w, g map[string]any) (diffs []string) {
	for k := range w {
		if gv, ok := g[k]; ok && kindOf(w[k]) != kindOf(gv) {
			diffs = append(diffs, fmt.Sprintf("%s.%s: recorded %s, got %s", at, k, kindOf(w[k]), kindOf(gv)))
		}
	}
	return diffs
}

func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case date:
		return "dateTime"
	case bool:
		return "bool"
	case json.Number:
		if strings.Contains(v.String(), ".") {
			return "float"
		}
		return "int"
	case int64:
		return "i4"
	case float64:
		return "double"
	case []any:
		return "array"
	}
	return "object"
}

func short(v any) string {
	s := fmt.Sprint(v)
	return s[:min(len(s), 200)]
}
