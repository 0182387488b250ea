package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
)

// rle returns a zstd frame of n zero bytes: four bytes for each 128 KiB.
func rle(n int) []byte {
	p := binary.LittleEndian.AppendUint32(nil, 0xfd2fb528)
	p = append(p, 0x80, 0x38) // content size of 4 bytes, window of 128 KiB
	p = binary.LittleEndian.AppendUint32(p, uint32(n))
	for n > 0 {
		size := min(n, 128<<10)
		n -= size
		head := uint32(size)<<3 | 1<<1 // a block of one repeated byte
		if n == 0 {
			head |= 1
		}
		p = append(p, byte(head), byte(head>>8), byte(head>>16), 0)
	}
	return p
}

// allocated returns how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// packWith builds a pack of one blob.
func packWith(t *testing.T, keys *seal.Keys, k chunk.Kind, e seal.Encoding, pieces []Entry, body []byte) []byte {
	t.Helper()
	b, err := NewBuilder(keys, KindOf(k), make([]byte, 0, len(body)+1<<20))
	if err != nil {
		t.Fatal(err)
	}
	s, ok := b.Reserve(k, e, pieces, len(body), TargetSize)
	if !ok {
		t.Fatal("no room")
	}
	if err := b.Fill(s, body); err != nil {
		t.Fatal(err)
	}
	_, data, _, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func openOnly(t *testing.T, keys *seal.Keys, data []byte) ([]byte, error) {
	t.Helper()
	d, err := Parse(keys, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Unlock(); err != nil {
		t.Fatal(err)
	}
	b := &d.Blobs[0]
	return d.Open(nil, b, data[b.Offset:b.Offset+b.Stored])
}

// Row S8 of the fault list: a blob that claims to be longer than its kind can
// be is refused without the memory that it claims to need, and the longest that
// its kind can be is read.
func TestBlobsAreBounded(t *testing.T) {
	keys, h := testKeys(t)
	for _, k := range []chunk.Kind{chunk.Data, chunk.Record, chunk.List, chunk.Node, chunk.Root} {
		n := int(k.MaxPlain())
		zeros := make([]byte, n)
		longest := packWith(t, keys, k, seal.Zstd, []Entry{{ID: h.Sum(k, zeros), Length: uint32(n)}}, rle(n))
		if p, err := openOnly(t, keys, longest); err != nil || !bytes.Equal(p, zeros) {
			t.Errorf("the longest %v: %d bytes, %v", k, len(p), err)
		}
		for _, claims := range []int{n + 1, 1_500_000_000} {
			if claims > 100<<20 && k != chunk.Data && testing.Short() {
				continue
			}
			data := packWith(t, keys, k, seal.Zstd, []Entry{{ID: chunk.ID{1}, Length: uint32(claims)}}, rle(claims))
			if len(data) > 100<<10 {
				t.Fatalf("a bomb of %d bytes", len(data))
			}
			var err error
			if used := allocated(func() { _, err = openOnly(t, keys, data) }); !errors.Is(err, seal.ErrCorrupt) || used > 4<<20 {
				t.Errorf("a %v that claims %d bytes: %v, %d bytes allocated", k, claims, err, used)
			}
		}
	}
	// Many pieces of a permitted length are not permitted together.
	pieces := make([]Entry, 4096)
	for i := range pieces {
		pieces[i] = Entry{ID: chunk.ID{byte(i), byte(i >> 8)}, Length: 96 << 10}
	}
	data := packWith(t, keys, chunk.Data, seal.Zstd, pieces, rle(4096*96<<10))
	var err error
	if used := allocated(func() { _, err = openOnly(t, keys, data) }); !errors.Is(err, seal.ErrCorrupt) || used > 4<<20 {
		t.Errorf("a blob of many chunks: %v, %d bytes allocated", err, used)
	}
	// A frame that contains more than the table of contents states.
	data = packWith(t, keys, chunk.Data, seal.Zstd, []Entry{{ID: chunk.ID{1}, Length: 1000}}, rle(1_500_000_000))
	if used := allocated(func() { _, err = openOnly(t, keys, data) }); !errors.Is(err, seal.ErrCorrupt) || used > 4<<20 {
		t.Errorf("a frame of 1.5 GB: %v, %d bytes allocated", err, used)
	}
}
