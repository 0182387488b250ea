package probe_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/objecttest/s3proxy"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/chunkstore/object/probe"
	"xenkeep/chunkstore/object/s3"
)

// states runs a probe and compares the outcome of each check. Checks that want
// does not name must be OK.
func states(t *testing.T, s object.Store, o probe.Options, want map[string]probe.State) {
	t.Helper()
	told := 0
	o.Found = func(probe.Result) { told++ }
	if o.LockFor == 0 {
		o.LockFor = time.Second
	}
	all, err := probe.Run(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	if told != len(all) {
		t.Errorf("told of %d checks of %d", told, len(all))
	}
	for _, r := range all {
		w := want[r.Check]
		if w == "" {
			w = probe.OK
		}
		if r.State != w || r.Text == "" {
			t.Errorf("%s: %s, want %s: %s (%s)", r.Check, r.State, w, r.Text, r.Hint)
		}
		delete(want, r.Check)
	}
	for check := range want {
		t.Errorf("%s was not tried", check)
	}
}

func left(t *testing.T, s object.Store) {
	t.Helper()
	if err := s.List(t.Context(), "", func(i object.Info) error { t.Errorf("left behind: %s", i.Name); return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	s, err := local.Connect(dir)
	if err != nil {
		t.Fatal(err)
	}
	states(t, s, probe.Options{}, map[string]probe.State{"conditional put": probe.None, "versions": probe.None, "object lock": probe.None})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) != 0 {
		t.Errorf("left behind: %v, %v", e, err)
	}
	if _, err := local.Connect(dir + "/none"); err == nil {
		t.Error("a folder that is not there is tried")
	}
}

func connect(t *testing.T, server *s3server.Server, endpoint string) *s3.Store {
	t.Helper()
	s, err := s3.Connect(s3.Config{
		Endpoint: endpoint, Bucket: server.Bucket, Prefix: "p", AccessKey: server.AccessKey, SecretKey: server.SecretKey, Region: server.Region,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestS3(t *testing.T) {
	server := s3server.Start(t)
	s := connect(t, server, server.Endpoint)
	states(t, s, probe.Options{Conditional: s.PutNew, Skew: s.Skew}, map[string]probe.State{"versions": probe.None, "object lock": probe.None})
	left(t, s)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	proxy.Break(s3proxy.AppendOnly(server.Folder))
	s = connect(t, server, proxy.Endpoint)
	states(t, s, probe.Options{Conditional: s.PutNew, Skew: s.Skew}, map[string]probe.State{
		"replace": probe.Warn, "delete": probe.Warn, "versions": probe.None, "object lock": probe.None,
	})
}

// Row E12 of the fault list: the probe reads with a suffix range that is longer
// than the object, and detects a store that cannot do this.
func TestShortSuffix(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	proxy.Break(s3proxy.ShortSuffix)
	s := connect(t, server, proxy.Endpoint)
	states(t, s, probe.Options{Conditional: s.PutNew, Skew: s.Skew}, map[string]probe.State{"versions": probe.None, "object lock": probe.None})
	if proxy.Hits() == 0 {
		t.Error("no suffix range was asked for")
	}
	all, err := probe.Run(t.Context(), shortSuffix{mem.New()}, probe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if (r.State == probe.Fail) != (r.Check == "ranged reads") {
			t.Errorf("%s is %s: %s", r.Check, r.State, r.Text)
		}
	}
}

// shortSuffix refuses to read more from the end of an object than it contains.
type shortSuffix struct{ object.Store }

func (s shortSuffix) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	p, err := s.Store.Get(ctx, name, offset, length)
	if err == nil && offset < 0 && int64(len(p)) < -offset {
		return nil, object.ErrShort
	}
	return p, err
}

func TestLockedBucket(t *testing.T) {
	server := s3server.StartWith(t, s3server.Options{Lock: true})
	s := connect(t, server, server.Endpoint)
	states(t, s, probe.Options{Conditional: s.PutNew, Skew: s.Skew}, nil)
	left(t, s)
	if err := s.ListVersions(t.Context(), "", func(v object.Version) error { t.Errorf("left behind: %+v", v); return nil }); err != nil {
		t.Fatal(err)
	}
}

// The probe detects the faults of a storage.
func TestFaults(t *testing.T) {
	flip := objecttest.FlipBit(100)
	for check, fault := range map[string]objecttest.Fault{
		"write and read": {Verb: objecttest.Get, N: 3, Mangle: flip},
		"replace":        {Verb: objecttest.Get, N: 17, Mangle: flip},
		"ranged reads":   {Verb: objecttest.Get, N: 23, Mangle: flip},
		"pack":           {Verb: objecttest.Put, Prefix: "probe-", N: 41, Err: object.ErrNoSpace},
	} {
		f := objecttest.NewFaulty(mem.New())
		f.Inject(fault)
		all, err := probe.Run(t.Context(), f, probe.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if (r.State == probe.Fail) != (r.Check == check) {
				t.Errorf("%s broken: %s is %s: %s", check, r.Check, r.State, r.Text)
			}
		}
	}
	// New objects appear in listings later than the storage declares.
	for late, want := range map[time.Duration]probe.State{100 * time.Millisecond: probe.Fail, 0: probe.OK} {
		f := objecttest.NewFaulty(mem.New())
		f.DelayLists(0, late, time.Now)
		all, err := probe.Run(t.Context(), f, probe.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Check == "listing" && r.State != want {
				t.Errorf("late by %v: %s: %s", late, r.State, r.Text)
			}
		}
	}
	f := objecttest.NewFaulty(mem.New())
	f.Inject(objecttest.Fault{Stay: true, Err: object.ErrPermission})
	all, err := probe.Run(t.Context(), f, probe.Options{})
	if err != nil || len(all) != 1 || all[0].State != probe.Fail || !strings.Contains(all[0].Text, "permission") {
		t.Errorf("nothing allowed: %+v, %v", all, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := probe.Run(ctx, mem.New(), probe.Options{}); err == nil {
		t.Error("cancelled, and no error")
	}
}
