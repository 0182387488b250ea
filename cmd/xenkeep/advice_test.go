package main

import (
	"strings"
	"testing"

	"xenkeep/repo/check"
)

// Every kind of finding has a next step, except damaged data, whose line names the
// lost bytes. Advice after a check without a key mentions when a command needs one.
func TestAdvice(t *testing.T) {
	for kind := check.BadData; kind <= check.BadCondemned; kind++ {
		text := advice(check.Finding{Kind: kind, Object: "snapshots/0123"})
		if (text == "") != (kind == check.BadData) {
			t.Errorf("kind %d: %q", kind, text)
		}
	}
	for _, kind := range []check.Kind{check.MissingPack, check.PackSize, check.ChangedPack} {
		if text := advice(check.Finding{Kind: kind, Keyless: true}); !strings.HasPrefix(text, "with a key, xenkeep ") {
			t.Errorf("kind %d without a key: %q", kind, text)
		}
	}
	for _, folder := range []string{"config", "index/1", "snapshots/1", "over/1", "catalogue/1"} {
		if advice(check.Finding{Kind: check.BadObject, Object: folder}) == "" {
			t.Errorf("no advice for %s", folder)
		}
	}
	f := check.Finding{Kind: check.PackSize, Object: "packs/01/01", Error: "pack has 1 bytes instead of 2"}
	if got, want := findingText(f), "packs/01/01: pack has 1 bytes instead of 2; xenkeep repair packs saves what can be read of it"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
