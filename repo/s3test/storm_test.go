package s3test

import (
	"net/http"
	"testing"
	"time"

	"xenkeep/chunkstore/object/objecttest/s3proxy"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// Backup, restore, check and prune succeed through a connection on which every
// third request fails, each time in another way.
func TestStorm(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	at := "s3:http://" + proxy.Endpoint + "/" + server.Bucket + "/repo"
	o := options(server)
	create(t, at, o, repo.Options{})
	proxy.Break(s3proxy.Storm(3,
		s3proxy.Answer(http.StatusInternalServerError, "InternalError"),
		s3proxy.Truncate,
		s3proxy.Answer(http.StatusServiceUnavailable, "SlowDown"),
		s3proxy.Reset,
		s3proxy.Slow(20*time.Millisecond),
		s3proxy.Lost,
		s3proxy.Answer(http.StatusBadGateway, ""),
	))
	day1 := disktest.NewMem(40<<20 + 512)
	disktest.Scribble(t, day1, 1, 150)
	s1 := repotest.MustSave(t, open(t, at, o, ""), "vm", day1)
	day2 := disktest.NewMem(day1.Size())
	disktest.Scribble(t, day2, 2, 150)
	s2 := repotest.MustSave(t, open(t, at, o, ""), "vm", day2)
	r := open(t, at, o, "")
	repotest.MustRestore(t, r, s1.Disks[0].Root, day1)
	repotest.MustRestore(t, r, s2.Disks[0].Root, day2)
	repotest.MustBeClean(t, r)
	if err := r.DeleteSnapshot(t.Context(), s1); err != nil {
		t.Fatal(err)
	}
	r = open(t, at, o, "")
	plan, err := prune.New(t.Context(), r, prune.Options{Exclusive: true, MaxRepack: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	res, err := plan.Execute(t.Context())
	if err != nil || res.Deleted.Bytes == 0 {
		t.Fatalf("prune: %+v, %v", res, err)
	}
	r = open(t, at, o, "")
	repotest.MustRestore(t, r, s2.Disks[0].Root, day2)
	repotest.MustBeClean(t, r)
	if proxy.Hits() < 30 {
		t.Errorf("only %d requests went wrong", proxy.Hits())
	}
}
