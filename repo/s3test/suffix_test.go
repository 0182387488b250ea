package s3test

import (
	"testing"

	"xenkeep/chunkstore/object/objecttest/s3proxy"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/repair"
	"xenkeep/repo/repotest"
)

// Row E12 of the fault list: if a server answers 416 to a suffix range that is
// longer than the object, check reports a sound repository as sound, a repair does
// no harm, and disks can be restored.
func TestShortSuffix(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	at := "s3:http://" + proxy.Endpoint + "/" + server.Bucket + "/repo"
	o := options(server)
	create(t, at, o, repo.Options{})
	proxy.Break(s3proxy.ShortSuffix)
	day1 := disktest.NewMem(4<<20 + 512)
	disktest.Scribble(t, day1, 1, 3) // packs of less than a suffix range
	s1 := repotest.MustSave(t, open(t, at, o, ""), "vm", day1)
	repotest.MustBeClean(t, open(t, at, o, ""))
	res, err := repair.Index(t.Context(), open(t, at, o, ""), repair.IndexOptions{All: true})
	if err != nil || res.Missing+res.Unread != 0 || len(res.Findings) > 0 {
		t.Fatalf("repair: %+v, %v", res, err)
	}
	r := open(t, at, o, "")
	repotest.MustBeClean(t, r)
	repotest.MustRestore(t, r, s1.Disks[0].Root, day1)
	if proxy.Hits() == 0 {
		t.Error("no suffix range was asked for")
	}
}
