package repo

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/slot"
)

// forge puts a key slot that nobody can open, and that states a cost. Anyone who
// can write to the storage can do that.
func forge(t *testing.T, store object.Store, id, repository string, k slot.KDF) {
	t.Helper()
	k.Name, k.Salt = "argon2id", make([]byte, 32)
	head, err := json.Marshal(slot.Head{Format: 1, Repository: repository, ID: id, Role: "full", Label: "laptop", KDF: k})
	if err != nil {
		t.Fatal(err)
	}
	data := append([]byte("XKSL"), 0, 1, 0, 0)
	data = binary.BigEndian.AppendUint32(data, uint32(len(head)))
	data = append(append(data, head...), make([]byte, 500)...)
	for _, side := range []string{"a", "b"} {
		if err := store.Put(t.Context(), slotName(side, id), data); err != nil {
			t.Fatal(err)
		}
	}
}

// Row S9 of the fault list: forged key slots that state any cost stall no opening.
// The costs are small here, and so is the budget.
func TestForgedSlots(t *testing.T) {
	ctx := t.Context()
	store := mem.New()
	password := slot.Secret{Password: []byte("correct horse")}
	r, err := Init(ctx, store, Options{Secret: password})
	if err != nil {
		t.Fatal(err)
	}
	id := r.Keys().Cert.Writer().String()
	// The first is the most expensive that the format permits; a thousand are cheap;
	// and a hundred together exceed any budget.
	forge(t, store, strings.Repeat("0", 31)+"1", r.ID(), slot.KDF{Time: 64, Memory: 1 << 20, Lanes: 4})
	for i := range 1000 {
		forge(t, store, fmt.Sprintf("%032x", 1000+i), r.ID(), slot.KDF{Time: 1, Memory: 8, Lanes: 1})
	}
	for i := range 100 {
		forge(t, store, fmt.Sprintf("%032x", 100000+i), "../../../etc", slot.KDF{Time: 4, Memory: slot.StandardCost, Lanes: 4})
	}
	cache := t.TempDir()
	var before, after runtime.MemStats
	for _, o := range []Options{
		{Secret: password, CacheDir: cache},             // as on a new machine
		{Secret: password, CacheDir: cache},             // as on one that opened it before
		{Secret: password, Slot: id},                    // by name
		{Secret: password, Slot: id[:8], slotBudget: 1}, // a slot that is named is tried, whatever it costs
	} {
		runtime.ReadMemStats(&before)
		got, err := Open(ctx, store, o)
		runtime.ReadMemStats(&after)
		if err != nil || got.Keys().Cert.Writer().String() != id {
			t.Errorf("%+v: %v", o, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 300<<20 {
			t.Errorf("%+v: %d bytes allocated", o, used)
		}
	}
	// The budget is spent before the genuine slot is reached: the error names the
	// slots that were not tried.
	_, err = Open(ctx, store, Options{Secret: password, slotBudget: 2000 * 8})
	var untried *UntriedError
	if !errors.As(err, &untried) || !errors.Is(err, slot.ErrWrongSecret) || len(untried.Slots) != 102 ||
		untried.Slots[0].ID != id || !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), `("laptop")`) || !strings.Contains(err.Error(), "and 94 more") {
		t.Errorf("with a small budget: %v", err)
	}
	// A wrong password tries no slot of another kind or of an excessive cost.
	if _, err = Open(ctx, store, Options{Secret: wrong}); !errors.Is(err, slot.ErrWrongSecret) || errors.As(err, &untried) {
		t.Errorf("a wrong key file: %v", err)
	}
	if _, err = Open(ctx, store, Options{Secret: password, Slot: "laptop"}); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("a label of several slots: %v", err)
	}
}

// Row S9 of the fault list: what ends a command also ends the stretching of its
// password, which nothing can interrupt inside.
func TestOpenEndsWithContext(t *testing.T) {
	store := mem.New()
	r, err := Init(t.Context(), store, Options{Secret: right})
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("f", 32)
	forge(t, store, id, r.ID(), slot.KDF{Time: 64, Memory: 128 << 10, Lanes: 1})
	data, err := store.Get(t.Context(), slotName("a", id), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := slot.Open(ctx, data, slot.Secret{Password: []byte("x")}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, not the context's error", err)
	}
}

// A slot whose two copies differ opens by either, even if the damaged copy is the
// one that is tried first.
func TestEitherCopyOpens(t *testing.T) {
	for _, side := range []string{"a", "b"} {
		store := mem.New()
		r, err := Init(t.Context(), store, Options{Secret: right})
		if err != nil {
			t.Fatal(err)
		}
		name := slotName(side, r.Keys().Cert.Writer().String())
		data, err := store.Get(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)-1]++
		if err := store.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), store, Options{Secret: right}); err != nil {
			t.Errorf("with copy %s damaged: %v", side, err)
		}
	}
}
