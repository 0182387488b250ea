package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/job"
	"xenkeep/xapi"
)

var exitCases = []struct {
	err  error
	want int
}{
	{nil, exitOK},
	{errors.New("other"), exitFailed},
	{job.ErrFailed, exitFailed},
	{usagef("what"), exitUsage},
	{errors.Join(job.ErrPartial, fmt.Errorf("VM: %w", seal.ErrCorrupt)), exitPartial},
	{fmt.Errorf("restore: %w", seal.ErrCorrupt), exitDamage},
	// Row N5 of the fault list: a job that met damage ends with 4, saved or not.
	{errors.Join(job.ErrDamage, job.ErrPartial), exitDamage},
	{errors.Join(job.ErrDamage, job.ErrFailed, errors.New("x")), exitDamage},
	{&chunkstore.BlobError{Kind: chunk.Data, Err: chunkstore.ErrMissing}, exitDamage},
	{reported{errDamage}, exitDamage},
	{&object.Error{Op: "open", Name: "/x", Class: object.ErrNoRepository}, exitNoRepository},
	{errors.Join(job.ErrFailed, fmt.Errorf("VM: %w", object.ErrNoRepository)), exitNoRepository},
	{fmt.Errorf("job: %w", job.ErrActive), exitActive},
	{fmt.Errorf("repository: %w", slot.ErrWrongSecret), exitWrongSecret},
	{errInterrupted, exitInterrupted},
}

// A message is one line, its hint a second one, and control characters in names do
// not reach the terminal.
func TestComplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.Join(errors.New("a"), errors.New("b\x1b[2J")), "xenkeep: a; b?[2J\n"},
		{reported{errors.New("told")}, ""},
		{fmt.Errorf("log in: %w", &xapi.UntrustedHostError{Host: "h:443", Fingerprint: "AB:CD"}),
			"xenkeep: pool host h:443: nothing vouches for its certificate, which has the fingerprint AB:CD\n" +
				"  hint: compare it on the host (openssl x509 -noout -fingerprint -sha256 -in /etc/xensource/xapi-ssl.pem), then add --pool-fingerprint AB:CD\n"},
		{&xapi.UntrustedHostError{Host: "h", Fingerprint: "AB:CD", Pinned: true},
			"xenkeep: pool host h: its certificate is none of the pinned ones: it has the fingerprint AB:CD\n" +
				"  hint: the certificate was renewed, or this is another host: compare it on the host (openssl x509 -noout -fingerprint -sha256 -in /etc/xensource/xapi-ssl.pem), then replace the old fingerprint in --pool-fingerprint, XENKEEP_POOL_FINGERPRINT or the config\n"},
		{&xapi.UnreachableError{Text: "nobody answers at https://h:443 (connection refused)", Next: "is the host on?", Err: context.DeadlineExceeded},
			"xenkeep: nobody answers at https://h:443 (connection refused)\n  hint: is the host on?\n"},
		{context.DeadlineExceeded, "xenkeep: timed out: context deadline exceeded\n"},
	} {
		var out bytes.Buffer
		fail(&out, c.err)
		if out.String() != c.want {
			t.Errorf("%v:\n%s\nwant:\n%s", c.err, out.String(), c.want)
		}
	}
	if h := hint(&xapi.Error{Code: xapi.SRNoSpace}); h == "" {
		t.Error("no hint for a full SR")
	}
}

// Without a terminal, each transfer in progress prints a line every ten seconds, and
// none after the end.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := &tracker{ctx: t.Context(), w: &out, now: time.Now}
		l.every(linesEvery, l.list)
		a := l.Begin("web xvda", 4<<30)
		b := l.Begin("web\x07 xvdb", 0)
		time.Sleep(5 * time.Second)
		a.Add(1 << 30)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		b.Done()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		fmt.Fprintln(l, "a warning")
		a.Done()
		time.Sleep(time.Hour)
		l.Close()
		want := "web xvda: 1.0 GiB of 4.0 GiB, 102 MiB/s, 30s left\nweb? xvdb: 0 B\n" +
			"web xvda: 1.0 GiB of 4.0 GiB, 51 MiB/s, 1m0s left\na warning\n"
		if out.String() != want {
			t.Errorf("got:\n%swant:\n%s", out.String(), want)
		}
	})
}

func TestWarnings(t *testing.T) {
	var out bytes.Buffer
	log := warnings(t.Context(), &out)
	log.Info("nothing")
	log.Error("told elsewhere")
	log.With("vm", "web").Warn("delta failed", "error", errors.New("x\ny"))
	if got, want := out.String(), "xenkeep: warning: delta failed, vm web, error x; y\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestIndentXML(t *testing.T) {
	in := `<?xml version="1.0"?><value><struct><member><name>a b</name><value> </value></member><member><name>c</name><value/></member></struct></value>`
	out, err := indentXML([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if want := "\n      <name>a b</name>\n      <value> </value>\n"; !strings.Contains(string(out), want) {
		t.Errorf("got %s", out)
	}
	type member struct {
		Name  string `xml:"name"`
		Value string `xml:"value"`
	}
	var v struct {
		Members []member `xml:"struct>member"`
	}
	if err := xml.Unmarshal(out, &v); err != nil || len(v.Members) != 2 || v.Members[0].Value != " " {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := indentXML([]byte("<a><b></a>")); err == nil {
		t.Error("broken XML is taken")
	}
}
