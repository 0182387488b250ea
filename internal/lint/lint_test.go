// Package lint checks the rules of this repository that a program can check.
package lint

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "xenkeep"

// allowed lists which packages of ours a package may import; a name ending in
// "/..." means the folder and everything below it. A package that is not listed
// is an error, so that a new one is added to docs/architecture.md.
var allowed = []struct {
	pkg string
	may string
}{
	{"internal/disk", ""},
	{"internal/disk/disktest", "internal/disk"},
	{"internal/lint", ""},
	{"internal/child", ""},
	{"internal/hints", ""},
	{"internal/cpu", ""},
	{"internal/limit", "internal/disk"},
	{"internal/text", ""},
	{"nbd", "internal/disk"},
	{"vhd", "internal/disk"},
	{"xva", "internal/disk"},
	{"qcow2", "internal/disk"},
	{"filekind", ""},
	{"inspect", "internal/disk"},
	{"inspect/inspecttest", ""},
	{"mount", "repo repo/view repo/restore chunkstore/chunk inspect vhd internal/disk internal/child"},
	{"xapi", "internal/disk"},
	{"xapi/xapisim/...", "xapi/xapisim/... vhd qcow2 nbd internal/disk"},
	{"chunkstore/chunk", ""},
	{"chunkstore/seal", "chunkstore/chunk"},
	{"chunkstore/pack", "chunkstore/chunk chunkstore/seal"},
	{"chunkstore/slot", "chunkstore/seal"},
	{"chunkstore/index", ""},
	{"chunkstore/object/...", "chunkstore/object/..."},
	{"chunkstore", "chunkstore/... internal/cpu"},
	{"repo", "chunkstore/... internal/disk"},
	{"repo/tree", "chunkstore/... internal/disk"},
	{"repo/backup", "repo repo/tree chunkstore/... internal/disk"},
	{"repo/restore", "repo repo/tree chunkstore/... internal/disk"},
	{"repo/view", "repo repo/tree chunkstore/... internal/disk"},
	{"repo/diff", "repo repo/tree chunkstore/... internal/disk"},
	{"repo/check", "repo repo/tree chunkstore/... internal/disk"},
	{"repo/prune", "repo repo/tree chunkstore/..."},
	{"repo/repair", "repo repo/check chunkstore/... internal/disk"},
	{"repo/copy", "repo repo/tree repo/backup repo/diff chunkstore/... internal/disk"},
	{"repo/retention", "repo"},
	{"repo/forget", "repo repo/retention chunkstore/object"},
	{"repo/stats", "repo repo/tree chunkstore/... internal/disk"},
	{"repo/attacktest", ""},
	{"repo/formattest", ""},
	{"repo/repotest", "repo repo/backup repo/check repo/restore chunkstore/... internal/disk/..."},
	{"job/notify", "job/config job/report"},
	{"job/report", "job chunkstore internal/text"},
	{"job/nightly", "job job/backup job/lease job/vmplan job/config job/notify job/report job/selection repo repo/check repo/prune repo/forget repo/retention chunkstore/seal xapi internal/limit internal/child"},
	{"repo/s3test", ""},
	{"job/pyre", ""},
	{"job/config", "job/pyre repo/retention chunkstore/object chunkstore/seal internal/limit internal/child"},
	{"job/selection", "job/config job/pyre repo/retention xapi"},
	{"job/poolsnap", "job job/lease job/vmplan job/config job/selection repo repo/retention xapi xva internal/disk"},
	{"job", "repo repo/backup repo/copy repo/forget repo/retention chunkstore/... internal/hints internal/limit"},
	{"job/records", "repo chunkstore/seal xapi xva"},
	{"job/transfer", "repo repo/restore filekind vhd nbd xapi internal/disk internal/hints"},
	{"job/lease", "job repo xapi internal/hints"},
	{"job/vmplan", "job job/lease job/records repo xapi internal/hints"},
	{"job/backup", "job job/lease job/records job/transfer job/vmplan repo repo/backup repo/diff repo/forget repo/retention chunkstore/... vhd nbd xapi internal/disk internal/hints"},
	{"job/restore", "job job/lease job/records job/transfer job/vmplan repo repo/restore chunkstore/... vhd xva nbd xapi internal/disk internal/hints"},
	{"job/exchange", "job job/records job/transfer repo repo/backup repo/diff repo/restore chunkstore/... filekind vhd xva qcow2 nbd xapi internal/disk internal/child"},
	{"job/browse", "job job/records repo repo/diff repo/view chunkstore/... filekind inspect nbd internal/disk"},
	{"job/doctor", "job job/lease job/transfer repo vhd nbd xapi internal/disk"},
	{"job/jobtest", "..."},
	{"cmd/xenkeep", "job/... repo/... chunkstore/... xapi/... vhd nbd inspect mount internal/disk internal/limit internal/text internal/child"},
	{"bench/...", "..."},
}

func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == base || strings.HasPrefix(pkg, base+"/")
	}
	return pkg == pattern
}

// TestImportArrows checks that imports follow the direction of
// docs/architecture.md. Tests of a package may import any package they need.
func TestImportArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	n := 0
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n++
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		var may []string
		found := false
		for _, a := range allowed {
			if matches(a.pkg, name) {
				found, may = true, strings.Fields(a.may)
				break
			}
		}
		if !found {
			t.Errorf("package %s has no place in the list of arrows", name)
			continue
		}
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				continue
			}
			fine := false
			for _, m := range may {
				fine = fine || matches(m, ours)
			}
			if !fine {
				t.Errorf("%s must not import %s", name, ours)
			}
		}
	}
	if n < 10 {
		t.Fatalf("only %d packages seen", n)
	}
}

// TestDependenciesHaveReasons checks that docs/architecture.md mentions each
// direct dependency.
func TestDependenciesHaveReasons(t *testing.T) {
	doc, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	n := 0
	for scan.Scan() {
		fields := strings.Fields(strings.TrimPrefix(scan.Text(), "require "))
		if len(fields) < 2 || !strings.Contains(fields[0], ".") || strings.Contains(scan.Text(), "// indirect") {
			continue
		}
		n++
		if !strings.Contains(string(doc), fields[0]) {
			t.Errorf("docs/architecture.md gives no reason for %s", fields[0])
		}
	}
	if n < 5 {
		t.Fatalf("only %d dependencies seen", n)
	}
}
