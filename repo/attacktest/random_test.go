package attacktest

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

var worlds = flag.Int("worlds", 2, "how many repositories the random attacker attacks")

// kinds maps the folders of small objects to their kinds.
func kinds() map[string]seal.ObjectKind {
	return map[string]seal.ObjectKind{
		"snapshots/": seal.KindSnapshot, "index/": seal.KindIndex, "notes/": seal.KindNote, "claims/": seal.KindClaim,
		"references/": seal.KindReference, "condemned/": seal.KindCondemned, "retired/": seal.KindRetired, "damage/": seal.KindDamage,
		"revoked/": seal.KindRevoked, "catalogue/": seal.KindCatalogue, "over/": seal.KindOver, "proofs/": seal.KindProof,
	}
}

// random is a thief of the write-only key who may put objects, and repeats every
// object that was ever in the storage.
type random struct {
	*attacker
	w    *world
	r    *rand.Rand
	seen map[string][]byte // everything that was ever stored, by name
}

func (a *random) pick(prefix string) string {
	names := a.list(prefix)
	if len(names) == 0 {
		return ""
	}
	return names[a.r.IntN(len(names))]
}

func (a *random) remember() {
	for _, name := range a.list("") {
		if a.seen[name] == nil {
			a.seen[name] = a.get(name)
		}
	}
}

// run returns the ID of a run: of one that exists, or a random one.
func (a *random) run() string {
	for _, folder := range []string{"claims/", "references/"} {
		if name := a.pick(folder); name != "" && a.r.IntN(2) == 0 {
			_, rest, _ := strings.Cut(name, "/")
			run, _, _ := strings.Cut(rest, "-")
			return run
		}
	}
	return fmt.Sprintf("%032x", a.r.Uint64())
}

// body returns a plausible body of an object of a kind.
func (a *random) body(kind seal.ObjectKind, run string) any {
	old := a.w.clock.Now().Add(-time.Duration(a.r.IntN(100*24)) * time.Hour)
	snapshot := strings.TrimPrefix(a.pick("snapshots/"), "snapshots/")
	switch kind {
	case seal.KindNote:
		kinds := []string{"protect", "unprotect", "verified", "damaged", "forget", "tag", "untag", "drill"}
		return map[string]any{"snapshot": snapshot, "kind": kinds[a.r.IntN(len(kinds))], "time": old, "text": "x"}
	case seal.KindClaim:
		return map[string]any{"run": run, "started": old, "roots": []string{}}
	case seal.KindReference:
		return map[string]any{"run": run, "packs": a.w.packIDs()}
	case seal.KindCondemned:
		return map[string]any{"time": old, "packs": a.w.packIDs(), "deleted": a.r.IntN(2) == 0}
	case seal.KindRetired:
		return map[string]any{"run": run, "time": old, "ended": a.r.IntN(2) == 0}
	case seal.KindOver:
		return map[string]any{"run": run, "time": old, "snapshots": []string{}}
	case seal.KindDamage:
		return map[string]any{"time": old, "packs": a.w.packIDs(), "blocks": []any{map[string]any{"snapshot": snapshot, "device": "xvda", "ranges": [][2]int{{0, 1}}}}}
	case seal.KindRevoked:
		return map[string]any{"writer": a.w.full.Keys().Cert.Writer().String(), "time": old, "objects": []string{}, "packs": []string{}}
	case seal.KindProof:
		var packs []byte
		for _, name := range a.list("packs/") {
			if id, ok := pack.ParseObjectName(name); ok {
				packs = append(packs, id[:]...)
			}
		}
		return map[string]any{"time": old, "packs": packs}
	}
	return map[string]any{}
}

// move does one thing that the thief may do, and returns its name.
func (a *random) move() string {
	a.remember()
	var folders []string
	for f := range kinds() {
		folders = append(folders, f)
	}
	folder := folders[a.r.IntN(len(folders))]
	prefix, run := folder, a.run()
	switch folder {
	case "claims/", "references/", "retired/", "over/":
		prefix += run + "-"
	}
	switch a.r.IntN(6) {
	case 0: // junk under its own name
		p := make([]byte, a.r.IntN(300))
		for i := range p {
			p[i] = byte(a.r.Uint32())
		}
		a.put(prefix+sum(p), p)
		return "junk in " + folder
	case 1: // an object of any folder and any time, in its place or in another
		for name, p := range a.seen {
			if strings.HasPrefix(name, "packs/") || strings.HasPrefix(name, "slots/") || name == "config" || strings.HasPrefix(name, "snapshots/") {
				continue // a forgotten snapshot that is put back needs data that is gone, which is reported
			}
			to := prefix + sum(p)
			if a.r.IntN(2) == 0 {
				to = name
			}
			if _, err := a.inner.Stat(a.t.Context(), to); err != nil {
				a.put(to, p)
			}
			return "replay of " + name + " as " + to
		}
	case 2: // wrong content under known IDs
		a.wrongPacks(a.w.targets(a.w.weak()))
		return "wrong packs"
	case 3: // any statement about any packs
		var packs []index.PackEntries
		all := a.w.targets(a.w.weak())
		for _, name := range a.list("packs/") {
			id, ok := pack.ParseObjectName(name)
			if !ok || a.r.IntN(2) == 0 {
				continue
			}
			p := index.PackEntries{Pack: id, Size: int64(a.r.IntN(1 << 20))}
			at := uint32(a.r.IntN(1000))
			for range a.r.IntN(20) {
				t := all[a.r.IntN(len(all))]
				n := uint32(16 + a.r.IntN(500))
				p.Entries = append(p.Entries, index.Entry{Prefix: index.PrefixOf(t.id), Offset: at, Length: n})
				at += n
			}
			packs = append(packs, p)
		}
		o := &chunkstore.IndexObject{Packs: packs}
		for _, name := range a.list("index/") {
			var old [32]byte
			if _, err := fmt.Sscanf(strings.TrimPrefix(name, "index/"), "%x", &old); err == nil {
				o.Replaces = append(o.Replaces, old)
			}
		}
		data, name, err := chunkstore.SealIndexObject(a.keys, o)
		if err != nil {
			a.t.Fatal(err)
		}
		a.put(name, data)
		return "index object"
	default: // a signed object
		if folder == "index/" || folder == "snapshots/" || folder == "catalogue/" {
			return "nothing"
		}
		body, err := json.Marshal(a.body(kinds()[folder], run))
		if err != nil {
			a.t.Fatal(err)
		}
		a.signed(prefix, kinds()[folder], nil, body)
		return "signed object in " + folder
	}
	return "nothing"
}

// played is the outcome of a world with a random thief.
type played struct {
	lost, refused, deleted int
	story                  []string
}

func (p *played) tell(format string, args ...any) {
	p.story = append(p.story, fmt.Sprintf(format, args...))
}

// play lets a random thief and the honest side take turns. Prunes and backups with
// the full key have the defences of o.
func play(t *testing.T, seed uint64, o repo.Options) (out played) {
	w := newWorld(t)
	a := &random{attacker: w.thief(mayPut), w: w, r: rand.New(rand.NewPCG(seed, 1)), seen: make(map[string][]byte)}
	kept := make(map[*repo.Snapshot]*disktest.Mem)
	o.CacheDir = t.TempDir()
	machine := repo.Options{Secret: repotest.Key(6), CacheDir: t.TempDir()}
	save := func(o repo.Options, vm string) {
		disk := content(uint64(a.r.IntN(4)), uint64(10+a.r.IntN(3)))
		r := repotest.OpenWith(t, w.objects, o)
		defer r.Store().Index().Close()
		w.clock.Add(time.Hour)
		s, err := repotest.Save(t.Context(), r, vm, disk.Source(), backup.DiskOptions{Size: disk.Size()}, backup.Options{Now: w.clock.Now})
		if err != nil {
			out.tell("backup of %s: %v", vm, err)
			out.lost++
			return
		}
		kept[s] = disk
	}
	save(o, "a")
	save(machine, "b")
	for range 14 {
		for range 1 + a.r.IntN(4) {
			out.tell("%s", a.move())
		}
		switch a.r.IntN(5) {
		case 0:
			out.tell("backup with the full key")
			save(o, "a")
		case 1:
			out.tell("backup of the machine")
			save(machine, "b")
		case 2:
			for s := range kept {
				if len(kept) > 2 {
					out.tell("forget %s", s.Short())
					repotest.Forget(t, w.objects, s)
					delete(kept, s)
				}
				break
			}
		default:
			w.clock.Add(40 * time.Hour)
			r := repotest.OpenWith(t, w.objects, o)
			res, err := w.pruneWith(r, 1<<30)
			out.tell("prune: %+v, %v", res, err)
			switch {
			case errors.Is(err, prune.ErrUnreadable):
				out.refused++
			case err != nil:
				t.Errorf("prune: %v", err)
			default:
				out.deleted += res.Deleted.Packs
			}
			_ = r.Store().Index().Close()
		}
	}
	for s, disk := range kept {
		if !w.restores(s, disk) {
			out.tell("snapshot %s of %s is lost", s.Short(), s.VM.Name)
			out.lost++
		}
	}
	if all, bad, err := w.admin().Snapshots(t.Context()); err != nil || len(bad) > 0 || len(all) != len(kept) {
		out.tell("%d snapshots of %d, %v, %v", len(all), len(kept), bad, err)
		out.lost++
	}
	return out
}

// A thief of the write-only key who may put objects does anything in any order, while
// backups with both keys, forgets and prunes go on. Backups always work, and every
// snapshot that the honest side keeps can be restored at the end. Prunes are not held
// up for good. Without the defences, the same thief destroys snapshots.
func TestRandomThief(t *testing.T) {
	deleted, refused, lost := 0, 0, 0
	for seed := range *worlds {
		out := play(t, uint64(seed), repo.Options{})
		if out.lost > 0 {
			t.Errorf("world %d:\n%s", seed, strings.Join(out.story, "\n"))
		}
		deleted, refused = deleted+out.deleted, refused+out.refused
		without := play(t, uint64(seed), repo.Options{Without: []repo.Defence{repo.TrustedCopies, repo.VerifiedIndex, repo.FullStatements}})
		lost += without.lost
	}
	// Keys and packs are random, so a world may end without a loss: further worlds
	// are played without the defences until the thief destroys a snapshot.
	for seed := *worlds; lost == 0 && seed < *worlds+30; seed++ {
		lost += play(t, uint64(seed), repo.Options{Without: []repo.Defence{repo.TrustedCopies, repo.VerifiedIndex, repo.FullStatements}}).lost
	}
	t.Logf("%d packs were deleted, %d prunes refused; without the defences, %d losses", deleted, refused, lost)
	if deleted == 0 || lost == 0 {
		t.Errorf("%d packs were deleted; without the defences, %d losses: the thief does not reach what is defended", deleted, lost)
	}
}
