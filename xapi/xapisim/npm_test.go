package xapisim

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
)

// xenAPI is the npm package with which Xen Orchestra talks to pools.
const xenAPI = "xen-api@4.7.6"

// npmFolder creates a folder in which xen-api is installed.
func npmFolder(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: %s is not installed", tool)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"private":true,"type":"module"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", xenAPI)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("SKIP: npm cannot install %s: %v: %s", xenAPI, err, bytes.TrimSpace(out))
		}
		t.Fatalf("npm install %s: %v: %s", xenAPI, err, out)
	}
	return dir
}

// TestNPMClient backs up a disk and restores it with npm's xen-api, over
// JSON-RPC with events; the pool is the same before and after.
func TestNPMClient(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: takes npm's packages from the network")
	}
	dir := npmFolder(t)
	script, err := os.ReadFile("testdata/client.mjs")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "client.mjs"), script, 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, nil)
	before := c.p.Dump()
	cmd := exec.CommandContext(t.Context(), "node", "client.mjs", c.p.URL(), c.p.User(), c.p.Password(), c.p.Ready().VMs[0].UUID, dir)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	for k, want := range map[string]any{
		"types":       []any{"VM", "VDI", "SR", "host", "pool", "network"},
		"power_state": "Running", "memory": 2147483648.0, "field": c.p.Ready().VMs[0].Name, "snapshot": true, "disks": 2.0,
		"error": []any{"HANDLE_INVALID", "VM", "OpaqueRef:none"}, "readBack": "conectix",
		"vhd": float64(2048 + 512 + 4*(512+2*mib) + 512),
	} {
		if !reflect.DeepEqual(got[k], want) {
			t.Errorf("%s: %v, want %v", k, got[k], want)
		}
	}
	if uuid, _ := got["copy"].(string); uuid != "" {
		v, err := c.p.Volume(uuid)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 8*mib)
		if _, err := v.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(p) != sha256.Sum256(pattern(1, 8*mib)) {
			t.Error("what xen-api imported differs from what it exported")
		}
	} else {
		t.Error("no copy was made")
	}
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	c.p.GC()
	after := c.p.Dump()
	for _, class := range []string{"VM", "VDI", "VBD"} {
		if len(after[class]) != len(before[class]) {
			t.Errorf("%d of %s, before %d", len(after[class]), class, len(before[class]))
		}
	}
}
