package main

import (
	"bytes"
	"strings"
	"testing"

	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/slot"
	"xenkeep/repo"
)

// A snapshot that was published after its run had been ended is named wherever
// snapshots are listed, hinders no command, and is deleted when it is forgotten by
// its whole ID.
func TestWithdrawn(t *testing.T) {
	r := newRuin(t, 1<<20)
	objects, err := local.Open(r.path("repo"))
	if err != nil {
		t.Fatal(err)
	}
	open, err := repo.Open(t.Context(), objects, repo.Options{Secret: slot.Secret{KeyFile: bytes.Repeat([]byte{7}, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	run := strings.Repeat("ab", 16)
	late := &repo.Snapshot{Run: run, VM: repo.Named{Name: "late"}, Disks: []repo.Disk{{Device: "xvda", Size: 5 << 20, Root: repo.HexID{1}}}, Complete: true}
	if err := open.PutRunEnd(t.Context(), &repo.RunEnd{Run: run}); err != nil {
		t.Fatal(err)
	}
	if err := open.PutSnapshot(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	name := "snapshots/" + late.ID()
	code, stdout, stderr := r.command("snapshots")
	if code != exitOK || strings.Contains(stdout, "late") || !strings.Contains(stderr, "withdrawn: "+name) {
		t.Errorf("snapshots: %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, _ = r.command("snapshots", "--json")
	if code != exitOK || !strings.Contains(stdout, `"object":"`+name+`","state":"withdrawn"`) || !strings.Contains(stdout, `"snapshots":2,"bad":1`) {
		t.Errorf("snapshots --json: %d\n%s", code, stdout)
	}
	code, stdout, _ = r.command("check")
	if code != exitDamage || !strings.Contains(stdout, name) || !strings.Contains(stdout, "it does not count") {
		t.Errorf("check: %d\n%s", code, stdout)
	}
	// Its root does not exist: a snapshot that counts would stop every prune.
	if code, stdout, stderr = r.command("prune"); code != exitOK {
		t.Errorf("prune: %d\n%s%s", code, stdout, stderr)
	}
	r.must("forget", late.ID())
	if code, _, stderr = r.command("snapshots"); code != exitOK || stderr != "" {
		t.Errorf("snapshots once it is forgotten: %d\n%s", code, stderr)
	}
	r.must("check")
}
