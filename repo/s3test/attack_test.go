package s3test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/all"
	"xenkeep/chunkstore/object/objecttest/s3proxy"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/chunkstore/object/versions"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/repair"
	"xenkeep/repo/repotest"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// attack deletes and overwrites everything, as a thief of the backup machine's
// credentials can do, including older versions as far as the server permits it.
func attack(t *testing.T, server *s3server.Server, prefix string) (refused int) {
	t.Helper()
	client, err := minio.New(server.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.SecretKey, ""), Region: server.Region,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var keys []string
	for i := range client.ListObjectsIter(ctx, server.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if i.Err != nil {
			t.Fatal(i.Err)
		}
		keys = append(keys, i.Key)
	}
	for n, key := range keys {
		if n%3 != 0 {
			garbage := bytes.Repeat([]byte("ha! "), 500+n)
			if _, err := client.PutObject(ctx, server.Bucket, key, bytes.NewReader(garbage), int64(len(garbage)), minio.PutObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if n%3 != 1 {
			if err := client.RemoveObject(ctx, server.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range client.ListObjectsIter(ctx, server.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true, WithVersions: true}) {
		if i.IsDeleteMarker || i.Size > 100 && strings.Contains(i.Key, "/claims/") {
			continue
		}
		p, err := client.GetObject(ctx, server.Bucket, i.Key, minio.GetObjectOptions{VersionID: i.VersionID})
		if err == nil {
			var b bytes.Buffer
			if _, err = b.ReadFrom(p); err == nil && bytes.HasPrefix(b.Bytes(), []byte("ha! ")) {
				continue // objects of the attacker stay
			}
		}
		if client.RemoveObject(ctx, server.Bucket, i.Key, minio.RemoveObjectOptions{VersionID: i.VersionID}) != nil {
			refused++
		}
	}
	return refused
}

func TestAttack(t *testing.T) {
	server := s3server.StartWith(t, s3server.Options{Lock: true})
	at, o := server.Location("repo"), options(server)
	create(t, at, o, repo.Options{LockDays: 7})
	day1 := disktest.NewMem(24<<20 + 512)
	disktest.Scribble(t, day1, 1, 60)
	r := open(t, at, o, "")
	s1 := repotest.MustSave(t, r, "vm", day1)
	disktest.Scribble(t, day1, 2, 0) // the same disk, whose backup stores nothing
	day2 := disktest.NewMem(day1.Size())
	disktest.Scribble(t, day2, 3, 80)
	s2 := repotest.MustSave(t, r, "vm", day2)
	repotest.MustBeClean(t, r)
	if err := r.DeleteSnapshot(t.Context(), s1); !errors.Is(err, object.ErrLocked) {
		t.Fatalf("a locked snapshot was forgotten: %v", err)
	}
	if until, err := r.LockedUntil(t.Context(), s1); err != nil || time.Until(until) < 6*24*time.Hour {
		t.Fatalf("locked until %v, %v", until, err)
	}

	before := repotest.Names(t, r.Objects(), "")
	if refused := attack(t, server, "repo/"); refused < len(before)/2 {
		t.Fatalf("the server refused %d deletions of %d objects", refused, len(before))
	}

	// Everything can be read without a repair.
	r = open(t, at, o, "")
	found, bad, err := r.Snapshots(t.Context())
	if err != nil || len(bad) > 0 || len(found) != 2 {
		t.Fatalf("%d snapshots, %v, %v", len(found), bad, err)
	}
	repotest.MustRestore(t, r, s1.Disks[0].Root, day1)
	repotest.MustRestore(t, r, s2.Disks[0].Root, day2)
	if p, err := r.ReadRecord(t.Context(), found[0], "vm"); err != nil || !strings.Contains(string(p), "vm") {
		t.Errorf("record: %q, %v", p, err)
	}
	// Backups continue to work.
	if s := repotest.MustSave(t, open(t, at, o, ""), "vm", day2); s.Disks[0].Root != s2.Disks[0].Root || s.Disks[0].Counts.New != 0 {
		t.Errorf("a backup after the attack: %+v", s.Disks[0])
	}

	// After a repair, the attack has no effect any more.
	plan, err := repair.Versions(t.Context(), open(t, at, o, ""), repair.VersionsOptions{DryRun: true})
	if err != nil || plan.Restored == 0 || plan.Lost > 0 {
		t.Fatalf("dry run: %+v, %v", plan, err)
	}
	var told int
	res, err := repair.Versions(t.Context(), open(t, at, o, ""), repair.VersionsOptions{Found: func(f repair.VersionFinding) { told++ }})
	if err != nil || *res != *plan || told != res.Restored {
		t.Fatalf("repaired %+v, planned %+v, told of %d, %v", res, plan, told, err)
	}
	plain, err := all.Connect(t.Context(), at, o)
	if err != nil {
		t.Fatal(err)
	}
	packs := 0
	for _, name := range repotest.Names(t, plain, "") {
		sum, named := versions.Sum(name)
		if !named {
			continue
		}
		p, err := plain.Get(t.Context(), name, 0, -1)
		if err != nil || sha256.Sum256(p) != sum {
			t.Errorf("%s: not put back: %v", name, err)
		}
		packs++
	}
	if packs < 6 {
		t.Errorf("only %d objects are there", packs)
	}
	r = open(t, at, o, "")
	if p := r.Problems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
	repotest.MustBeClean(t, r)
	if again, err := repair.Versions(t.Context(), r, repair.VersionsOptions{}); err != nil || again.Restored != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// Without locks a deletion may be the work of a prune: it is undone only if the
// user requests it.
func TestVersionsWithoutLocks(t *testing.T) {
	server := s3server.StartWith(t, s3server.Options{Lock: true})
	at, o := server.Location("repo"), options(server)
	create(t, at, o, repo.Options{})
	m := disktest.NewMem(8 << 20)
	disktest.Scribble(t, m, 1, 20)
	r := open(t, at, o, "")
	s := repotest.MustSave(t, r, "vm", m)
	if err := r.DeleteSnapshot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	res, err := repair.Versions(t.Context(), r, repair.VersionsOptions{})
	if err != nil || res.Restored != 0 || res.Left != 1 {
		t.Errorf("%+v, %v", res, err)
	}
	res, err = repair.Versions(t.Context(), r, repair.VersionsOptions{Deleted: true})
	if err != nil || res.Restored != 1 {
		t.Errorf("with the deleted: %+v, %v", res, err)
	}
	r = open(t, at, o, "")
	repotest.MustRestore(t, r, s.Disks[0].Root, m)
	repotest.MustBeClean(t, r)
	// Locks can be started later, and ended.
	if err := r.SetLockDays(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	s = repotest.MustSave(t, open(t, at, o, ""), "vm", m)
	r = open(t, at, o, "")
	if until, err := r.LockedUntil(t.Context(), s); err != nil || until.IsZero() {
		t.Errorf("locked until %v, %v", until, err)
	}
	if err := r.SetLockDays(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if r = open(t, at, o, ""); r.LockDays() != 0 {
		t.Error("locks were not ended")
	}
}

// A bucket without locks is refused before it is used.
func TestLocksNeedABucketThatHasThem(t *testing.T) {
	server := s3server.Start(t)
	objects, err := all.Create(t.Context(), server.Location("repo"), options(server))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = repo.Init(t.Context(), objects, repo.Options{Secret: repotest.Secret(), LockDays: 7}); err == nil {
		t.Fatal("locks in a bucket that has none")
	}
	if hint := object.HintOf(err); !strings.Contains(hint, "object lock") && !errors.Is(err, object.ErrUnsupported) {
		t.Errorf("%v, hint %q", err, hint)
	}
}

// Backups work with credentials that can neither delete nor overwrite.
func TestAppendOnly(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	proxy.Break(s3proxy.AppendOnly(server.Folder))
	at := "s3:http://" + proxy.Endpoint + "/" + server.Bucket + "/repo"
	o := options(server)
	create(t, at, o, repo.Options{})
	m := disktest.NewMem(12 << 20)
	cache := t.TempDir()
	var last *repo.Snapshot
	for day := range 3 {
		disktest.Scribble(t, m, uint64(day+1), 10)
		last = repotest.MustSave(t, open(t, at, o, cache), "vm", m)
	}
	repotest.MustRestore(t, open(t, at, o, cache), last.Disks[0].Root, m)
	if proxy.Hits() == 0 {
		t.Error("nothing was refused: the proxy lets all pass")
	}
	r := open(t, at, o, "")
	repotest.MustBeClean(t, r)
	// Each run records its end, because its claim must stay.
	claims, _, err := r.Claims(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	retired, _, err := r.Retirements(t.Context())
	if err != nil || len(claims) != 3 || len(retired) != 3 {
		t.Errorf("%d claims, %d of them over, %v", len(claims), len(retired), err)
	}
	if err := r.DeleteSnapshot(t.Context(), last); !errors.Is(err, object.ErrPermission) {
		t.Errorf("forgotten: %v", err)
	}
}
