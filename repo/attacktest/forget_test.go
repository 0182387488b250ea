package attacktest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/forget"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
	"xenkeep/repo/retention"
)

// keeper is a repository in which an administrator with a full key backs up a VM each
// day, and another machine has a write-only key that is stolen.
type keeper struct {
	*robbed
	true []*repo.Snapshot // the administrator's, one a day
	mine []*repo.Snapshot // of the machine whose key is stolen, one a day
}

func newKeeper(t *testing.T, days int) *keeper {
	t.Helper()
	k := &keeper{robbed: rob(t)}
	admin := repotest.Open(t, k.store)
	for day := range days {
		m := disktest.NewMem(1 << 20)
		disktest.Scribble(t, m, uint64(100+day), 5)
		k.true = append(k.true, k.save(t, admin, m))
		s := *k.good
		s.VM, s.Run, s.DataTime, s.WrittenTime = repo.Named{UUID: "own", Name: "own"}, fmt.Sprintf("%032x", day+1), k.clock.Now(), k.clock.Now()
		if err := k.thief.PutSnapshot(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
		k.mine = append(k.mine, &s)
		k.clock.Add(24 * time.Hour)
	}
	return k
}

// forge publishes copies of a snapshot with the stolen key: one for each time, each in
// a run of its own, and one more of all times in one run.
func (k *keeper) forge(t *testing.T, of *repo.Snapshot, times ...time.Time) {
	t.Helper()
	for i, at := range times {
		for _, run := range []string{fmt.Sprintf("%032x", 1000+i), strings.Repeat("f", 32)} {
			s := *of
			s.Run, s.DataTime, s.WrittenTime, s.Complete = run, at, at, true
			if err := k.thief.PutSnapshot(t.Context(), &s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// hours are times in the next hours.
func (k *keeper) hours(n int) (times []time.Time) {
	for i := range n {
		times = append(times, k.clock.Now().Add(time.Duration(i+1)*time.Hour))
	}
	return times
}

// forgotten applies a policy with the full key, and returns the snapshots of want that
// it forgets.
func (k *keeper) forgotten(t *testing.T, p retention.Policy, want []*repo.Snapshot, yes bool) (lost []string) {
	t.Helper()
	p.Location = time.UTC
	all, _, err := repotest.Open(t, k.store).Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plan := forget.Decide(retention.NewJudge(all, k.clock.Now()), p, all, all, nil, yes)
	for _, s := range plan.Gone() {
		if slices.ContainsFunc(want, func(w *repo.Snapshot) bool { return w.ID() == s.ID() }) {
			lost = append(lost, s.ID())
		}
	}
	return lost
}

// The thief of another machine's write-only key forges snapshots of the VM with data
// times of the next hours. A policy with the full key forgets the true snapshots that
// it would forget without them, and no other.
func TestForgedSnapshotsDisplaceNone(t *testing.T) {
	for _, p := range []retention.Policy{{Daily: 7, Last: 3}, {Last: 3}, {Hourly: 5}, {Within: retention.Period{Days: 3}}} {
		k := newKeeper(t, 10)
		before := k.forgotten(t, p, k.true, true)
		k.forge(t, k.true[0], k.hours(12)...)
		if after := k.forgotten(t, p, k.true, true); !slices.Equal(before, after) {
			t.Errorf("%+v: the forged snapshots change what is forgotten: %d before, %d after", p, len(before), len(after))
		}
		// Control: in the group of the true writer, the same snapshots displace some.
		admin := repotest.Open(t, k.store)
		if err := admin.SetGroup(t.Context(), "all", []string{k.writer, admin.Keys().Cert.Writer().String()}); err != nil {
			t.Fatal(err)
		}
		if after := k.forgotten(t, p, k.true, true); len(after) <= len(before) && p.Daily == 0 && p.Within == (retention.Period{}) {
			t.Errorf("control: %+v: in one group, nothing is displaced: %d before, %d after", p, len(before), len(after))
		}
	}
}

// The thief has the key of the machine that makes the backups, so that groups do not
// help. Snapshots that are dated back displace none, a single run fills one place of
// keep-last, and the brake stops what is left, until an administrator looks.
func TestForgedInOneGroup(t *testing.T) {
	k := newKeeper(t, 10)
	policy := retention.Policy{Daily: 30, Location: time.UTC}
	var late []time.Time
	for _, s := range k.mine[:8] {
		late = append(late, s.DataTime.Add(time.Minute))
	}
	k.forge(t, k.mine[0], late...)
	if lost := k.forgotten(t, policy, k.mine, true); len(lost) != 0 {
		t.Errorf("snapshots that are dated back displace %d true ones", len(lost))
	}
	k.forge(t, k.mine[0], k.hours(12)...)
	if lost := k.forgotten(t, retention.Policy{Last: 3}, k.mine, false); len(lost) != 0 {
		t.Errorf("the brake lets %d true snapshots go", len(lost))
	}
	// Control: with the brake off, they go.
	if lost := k.forgotten(t, retention.Policy{Last: 3}, k.mine, true); len(lost) < 5 {
		t.Errorf("control: without the brake, only %d true snapshots go", len(lost))
	}
}

// Control of the test above: where the times are not those of a storage's clock, as
// in a storage that the thief may date back too, the dated-back snapshots displace.
func TestForgedWithForgedStorageTimes(t *testing.T) {
	k := newKeeper(t, 5)
	now := k.clock.Now()
	for _, s := range k.mine[:4] {
		k.clock.Add(s.DataTime.Add(time.Minute).Sub(k.clock.Now()))
		k.forge(t, k.mine[0], s.DataTime.Add(time.Minute))
	}
	k.clock.Add(now.Sub(k.clock.Now()))
	if lost := k.forgotten(t, retention.Policy{Daily: 30}, k.mine, true); len(lost) == 0 {
		t.Error("control: nothing is displaced")
	}
}

// "latest" does not take the forged snapshot silently: it says with which key it was
// written, and a command that overwrites refuses it.
func TestLatestReportsTheWriter(t *testing.T) {
	k := newKeeper(t, 3)
	vm := k.true[0].VM.Name
	all, _, err := repotest.Open(t, k.store).Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := slices.DeleteFunc(slices.Clone(all), func(s *repo.Snapshot) bool { return s.Writer().String() == k.writer })
	if c, err := repo.Choose(before, "latest:"+vm, k.clock.Now()); err != nil || c.Note != "" {
		t.Errorf("control: with one writer: %q, %v", c.Note, err)
	}
	for _, spec := range []string{"latest:" + vm, vm + "@" + k.clock.Now().Format("2006-01-02")} {
		c, err := repo.Choose(all, spec, k.clock.Now())
		if err != nil || !strings.Contains(c.Note, "it was written with full keys") || !strings.Contains(c.Note, "key "+k.writer[:8]) {
			t.Errorf("%s: %q, %v", spec, c.Note, err)
		}
	}
	k.forge(t, k.true[0], k.hours(2)...)
	if all, _, err = repotest.Open(t, k.store).Snapshots(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := repo.Choose(all, "latest:"+vm, k.clock.Now())
	if err != nil || c.Snapshot.Writer().String() != k.writer || !strings.Contains(c.Note, "it was written with key "+k.writer[:8]) || !strings.Contains(c.Note, k.true[2].Short()) {
		t.Errorf("the forged one: %v %q, %v", c.Snapshot, c.Note, err)
	}
}

// forgetOthers puts a statement with the stolen key that true snapshots were
// forgotten long ago.
func (k *keeper) forgetOthers(t *testing.T) {
	t.Helper()
	f := repo.Forgotten{Time: k.clock.Now().Add(-60 * 24 * time.Hour), Until: k.clock.Now().Add(-50 * 24 * time.Hour)}
	for _, s := range k.true {
		f.Snapshots = append(f.Snapshots, s.ID())
	}
	body, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	data, name, err := k.thief.Keys().SealObject(seal.KindForgotten, nil, body)
	if err != nil {
		t.Fatal(err)
	}
	put(t, k.store, "forgotten/"+name, data)
}

// pruned counts the true snapshots that are left after prunes with the full key.
func (k *keeper) pruned(t *testing.T, store *mem.Store, o repo.Options) (left int) {
	t.Helper()
	for range 2 {
		k.clock.Add(48 * time.Hour)
		p, err := prune.New(t.Context(), repotest.OpenWith(t, store, o), prune.Options{Now: k.clock.Now, Wait: k.clock.Wait})
		if err == nil {
			_, err = p.Execute(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	all := repotest.Names(t, store, "snapshots/")
	for _, s := range k.true {
		if slices.Contains(all, "snapshots/"+s.ID()) {
			left++
		}
	}
	return left
}

// The thief of a write-only key states that true snapshots were forgotten long ago: a
// prune with the full key deletes none of them.
func TestWriteOnlyKeyForgetsNothing(t *testing.T) {
	k := newKeeper(t, 3)
	k.forgetOthers(t)
	if n := len(ids(t, repotest.Open(t, k.store))); n != 1+2*3 {
		t.Errorf("%d snapshots are left", n)
	}
	weak := k.store.Clone()
	if n := k.pruned(t, k.store, repo.Options{}); n != len(k.true) {
		t.Errorf("a prune leaves %d of %d true snapshots", n, len(k.true))
	}
	if n := k.pruned(t, weak, repo.Options{Without: []repo.Defence{repo.FullKeysForget}}); n != 0 {
		t.Errorf("control: without the defence, %d true snapshots are left", n)
	}
}

// A mistake with the full key, or a thief who makes it forget everything, is undone
// within the grace period, although prunes have run meanwhile.
func TestMistakeIsUndone(t *testing.T) {
	k := newKeeper(t, 3)
	admin := repotest.Open(t, k.store)
	all, _, err := admin.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done, err := forget.Execute(t.Context(), admin, all, forget.Options{Now: k.clock.Now()})
	if err != nil || len(done.Forgotten) != len(all) || done.Until == nil {
		t.Fatalf("%+v: %v", done, err)
	}
	if n := len(ids(t, repotest.Open(t, k.store))); n != 0 {
		t.Errorf("%d snapshots are listed", n)
	}
	deleted := k.store.Clone()
	if n := k.pruned(t, k.store, repo.Options{}); n != len(k.true) {
		t.Fatalf("a prune within the grace period leaves %d of %d", n, len(k.true))
	}
	admin = repotest.Open(t, k.store)
	var lost []string
	for _, s := range all {
		lost = append(lost, s.ID())
	}
	if err := admin.Recover(t.Context(), lost, k.clock.Now()); err != nil {
		t.Fatal(err)
	}
	repotest.MustBeClean(t, repotest.Open(t, k.store))
	repotest.MustRestore(t, repotest.Open(t, k.store), k.good.Disks[0].Root, k.day1)
	k.clock.Add(30 * 24 * time.Hour)
	if n := k.pruned(t, k.store, repo.Options{}); n != len(k.true) {
		t.Errorf("after the recovery, prunes leave %d of %d", n, len(k.true))
	}
	// Control: without a grace period, or after it, they are gone.
	k.clock.Add(-30 * 24 * time.Hour)
	k.clock.Add(8 * 24 * time.Hour)
	if n := k.pruned(t, deleted, repo.Options{}); n != 0 {
		t.Errorf("control: after the grace period, %d are left", n)
	}
}
