package sr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"xenkeep/vhd"
)

// crafted is a VHD stream whose fields the test can change.
type crafted struct {
	foot, trailer vhd.Footer
	head          vhd.Header
	bat           []uint32
	body          []byte // from byte bodyAt on
	bodyAt        int
}

const craftedBlock = 512 + blockSize

// craft creates a stream of blocks of data, each with all bits set.
func craft(data []byte, blocks ...int) *crafted {
	size := int64(len(data))
	c := &crafted{
		foot: vhd.Footer{
			Features: 2, Version: 0x10000, DataOffset: 512, Creator: [4]byte([]byte("test")),
			OriginalSize: uint64(size), CurrentSize: uint64(size), Geometry: vhd.GeometryOf(size),
			Type: vhd.TypeDynamic, ID: newUUID(),
		},
		head: vhd.Header{
			DataOffset: 1<<64 - 1, TableOffset: 2048, Version: 0x10000,
			Entries: uint32((size + blockSize - 1) / blockSize), BlockSize: blockSize,
		},
	}
	c.bodyAt = 2048 + int(roundUp(int64(c.head.Entries)*4, 512))
	c.bat = make([]uint32, (c.bodyAt-2048)/4)
	for i := range c.bat {
		c.bat[i] = absent
	}
	for _, b := range blocks {
		c.bat[b] = uint32((c.bodyAt + len(c.body)) / 512)
		c.body = append(c.body, ones...)
		c.body = append(c.body, data[b*blockSize:(b+1)*blockSize]...)
	}
	c.trailer = c.foot
	return c
}

func (c *crafted) bytes() []byte {
	b := append(c.foot.Encode(), c.head.Encode()...)
	b = append(b, make([]byte, int(c.head.TableOffset)-len(b))...)
	for _, e := range c.bat {
		b = binary.BigEndian.AppendUint32(b, e)
	}
	b = append(b, make([]byte, c.bodyAt-len(b))...)
	b = append(b, c.body...)
	return append(b, c.trailer.Encode()...)
}

func TestImportVHD(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	data := make([]byte, 6*mib)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	// Before each import the volume has this content.
	old := bytes.Repeat([]byte("old!"), 6*mib/4)
	// merged returns the listed blocks from data, the rest from old.
	merged := func(blocks ...int) []byte {
		b := bytes.Clone(old)
		for _, i := range blocks {
			copy(b[i*blockSize:(i+1)*blockSize], data[i*blockSize:])
		}
		return b
	}
	all := merged(0, 1, 2)

	for _, x := range []struct {
		name   string
		make   func() (stream []byte, length int64)
		fails  bool
		want   []byte // nil: not compared
		volume int64  // 0: 6 MiB
	}{
		{name: "full", make: func() ([]byte, int64) { return announced(craft(data, 0, 1, 2)) }, want: all},
		{name: "absent blocks are left alone", make: func() ([]byte, int64) { return announced(craft(data, 1)) }, want: merged(1)},
		{name: "no blocks", make: func() ([]byte, int64) { return announced(craft(data)) }, want: old},
		{name: "unknown length", make: func() ([]byte, int64) { return craft(data, 0, 2).bytes(), -1 }, want: merged(0, 2)},
		{name: "out of physical order", make: func() ([]byte, int64) { return announced(craft(data, 2, 0, 1)) }, want: all},
		{name: "clear bits are not written", make: func() ([]byte, int64) {
			c := craft(data, 0)
			copy(c.body, make([]byte, 512))
			c.body[0], c.body[100] = 0x41, 0xff // sectors 1, 7, 800 to 807
			return announced(c)
		}, want: func() []byte {
			b := bytes.Clone(old)
			copy(b[512:1024], data[512:])
			copy(b[7*512:8*512], data[7*512:])
			copy(b[800*512:808*512], data[800*512:])
			return b
		}()},
		{name: "a gap between blocks", make: func() ([]byte, int64) {
			c := craft(data, 0, 1)
			c.body = append(c.body[:craftedBlock:craftedBlock], append(make([]byte, 5*512), c.body[craftedBlock:]...)...)
			c.bat[1] += 5
			return announced(c)
		}, want: merged(0, 1)},
		{name: "BAT right behind the header, padded with zeros", make: func() ([]byte, int64) {
			c := craft(data, 0, 1, 2)
			c.head.TableOffset = 1536
			for i := int(c.head.Entries); i < len(c.bat); i++ {
				c.bat[i] = 0
			}
			return announced(c)
		}, want: all},
		{name: "sizes, geometry and id are ignored", make: func() ([]byte, int64) {
			c := craft(data, 0, 1, 2)
			c.foot.CurrentSize, c.foot.OriginalSize, c.foot.Geometry, c.foot.ID, c.foot.Features = 1, 77, vhd.Geometry{}, vhd.UUID{}, 0
			return announced(c)
		}, want: all},
		{name: "another trailing footer", make: func() ([]byte, int64) {
			c := craft(data, 1)
			c.trailer.CurrentSize, c.trailer.ID = 1, newUUID()
			return announced(c)
		}, want: merged(1)},
		{name: "type fixed", make: func() ([]byte, int64) {
			c := craft(data, 1)
			c.foot.Type = vhd.TypeFixed
			return announced(c)
		}, want: merged(1)},
		{name: "differencing without a parent", make: func() ([]byte, int64) {
			c := craft(data, 1)
			c.foot.Type = vhd.TypeDifferencing
			return announced(c)
		}, want: merged(1)},
		{name: "length 511 too small", make: func() ([]byte, int64) {
			b, n := announced(craft(data, 0))
			return b, n - 511
		}, want: merged(0)},
		{name: "length 512 too small", make: func() ([]byte, int64) {
			b, n := announced(craft(data, 0))
			return b, n - 512
		}, fails: true, want: merged(0)},
		{name: "length 1 too large", make: func() ([]byte, int64) {
			b, n := announced(craft(data, 0))
			return b, n + 1
		}, fails: true, want: merged(0)},
		{name: "bytes before the footer and behind the end", make: func() ([]byte, int64) {
			c := craft(data, 0)
			c.body = append(c.body, make([]byte, 3*512)...)
			b, n := announced(c)
			return append(b, "rubbish"...), n
		}, want: merged(0)},
		{name: "trailing footer damaged", make: func() ([]byte, int64) {
			b, n := announced(craft(data, 0))
			b[len(b)-400]++
			return b, n
		}, fails: true, want: merged(0)},
		{name: "no trailing footer", make: func() ([]byte, int64) {
			b, n := announced(craft(data, 0))
			return b[:n-512], n
		}, fails: true, want: merged(0)},
		{name: "cut in a block", make: func() ([]byte, int64) {
			b, n := announced(craft(data, 0, 1))
			return b[:len(b)-512-1000], n
		}, fails: true, want: merged(0)},
		{name: "two blocks in one place: the later one", make: func() ([]byte, int64) {
			c := craft(data, 0)
			c.bat[2] = c.bat[0]
			return announced(c)
		}, want: append(bytes.Clone(old[:4*mib]), data[:2*mib]...)},
		{name: "overlapping blocks", make: func() ([]byte, int64) {
			c := craft(data, 0, 1)
			c.bat[1]--
			return announced(c)
		}, fails: true},
		{name: "a block before the BAT's end", make: func() ([]byte, int64) {
			c := craft(data, 0)
			c.bat[1] = 2
			return announced(c)
		}, fails: true, want: old},
		{name: "a block outside the file", make: func() ([]byte, int64) {
			c := craft(data, 0)
			c.bat[1] = 1 << 30
			return announced(c)
		}, fails: true, want: merged(0)},
		{name: "4 MiB blocks", make: func() ([]byte, int64) {
			c := craft(data)
			c.head.BlockSize, c.head.Entries = 4*mib, 2
			c.bat[0] = uint32(c.bodyAt / 512)
			c.body = append(bytes.Repeat([]byte{0xff}, 1024), data[:4*mib]...)
			return announced(c)
		}, want: merged(0, 1)},
		{name: "1 MiB blocks are silently wrong", make: func() ([]byte, int64) {
			c := craft(data)
			c.head.BlockSize, c.head.Entries = mib, 6
			c.bat[0] = uint32(c.bodyAt / 512)
			c.body = append(bytes.Repeat([]byte{0xff}, 512), data[:mib]...)
			return announced(c)
		}, want: func() []byte {
			// Half of the padded bitmap is read as data.
			b := bytes.Clone(old)
			copy(b, bytes.Repeat([]byte{0xff}, 256))
			copy(b[256:mib], data)
			return b
		}()},
		{name: "smaller than the volume", make: func() ([]byte, int64) { return announced(craft(data[:4*mib], 0, 1)) }, want: merged(0, 1)},
		{name: "larger than the volume, nothing there", volume: 4 * mib, make: func() ([]byte, int64) { return announced(craft(data, 0, 1)) }, want: all[:4*mib]},
		{name: "larger than the volume", volume: 4 * mib, make: func() ([]byte, int64) { return announced(craft(data, 0, 1, 2)) }, fails: true, want: all[:4*mib]},
		{name: "bits set past the end", volume: 5 * mib, make: func() ([]byte, int64) { return announced(craft(data, 2)) }, fails: true,
			want: append(bytes.Clone(old[:4*mib]), data[4*mib:5*mib]...)},
		{name: "no VHD", make: func() ([]byte, int64) { return data, int64(len(data)) }, fails: true, want: old},
		{name: "empty", make: func() ([]byte, int64) { return nil, 0 }, fails: true, want: old},
		{name: "header damaged", make: func() ([]byte, int64) {
			b, n := announced(craft(data, 0))
			b[600]++
			return b, n
		}, fails: true, want: old},
		{name: "header with a data offset", make: func() ([]byte, int64) {
			c := craft(data, 0)
			c.head.DataOffset = 512
			return announced(c)
		}, fails: true, want: old},
		{name: "unknown locator", make: func() ([]byte, int64) {
			c := craft(data, 0)
			c.head.Locators[3].Code = [4]byte([]byte("What"))
			return announced(c)
		}, fails: true, want: old},
		{name: "parent name is no UTF-16", make: func() ([]byte, int64) {
			c := craft(data, 0)
			c.head.Name[0], c.head.Name[1], c.head.Name[3] = 0xd8, 0x00, 'x'
			return announced(c)
		}, fails: true, want: old},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := newSR(t, Config{Type: "ext"})
			size := x.volume
			if size == 0 {
				size = 6 * mib
			}
			v := create(t, s, "v", size, map[string]string{"type": "raw"})
			write(t, v, old[:size], 0)
			stream, length := x.make()
			err := v.ImportVHD(io.MultiReader(bytes.NewReader(stream)), length)
			if x.fails != (err != nil) {
				t.Errorf("error %v", err)
			}
			if err != nil && !errors.Is(err, ErrIO) {
				t.Errorf("%v does not wrap ErrIO", err)
			}
			if x.want != nil {
				got := content(t, v)
				for i := range got {
					if got[i] != x.want[i] {
						t.Fatalf("byte %d is %#02x, want %#02x", i, got[i], x.want[i])
					}
				}
			}
		})
	}
	t.Run("raw LVM", func(t *testing.T) {
		v := create(t, newSR(t, Config{Type: "lvm"}), "v", 8*mib, map[string]string{"type": "raw"})
		stream, length := announced(craft(data, 0))
		if err := v.ImportVHD(bytes.NewReader(stream), length); !errors.Is(err, ErrIO) {
			t.Errorf("error %v", err)
		}
		if err := v.ImportRaw(bytes.NewReader(data), int64(len(data))); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(content(t, v)[:len(data)], data) {
			t.Error("raw import differs")
		}
	})
	t.Run("full repository", func(t *testing.T) {
		v := create(t, newSR(t, Config{Type: "ext", PhysicalSize: 5 * mib}), "v", 6*mib, nil)
		stream, length := announced(craft(data, 0, 1, 2))
		if err := v.ImportVHD(bytes.NewReader(stream), length); !errors.Is(err, ErrIO) {
			t.Errorf("error %v", err)
		}
	})
}

func announced(c *crafted) ([]byte, int64) {
	b := c.bytes()
	return b, int64(len(b))
}

func TestImportRaw(t *testing.T) {
	data := bytes.Repeat([]byte("data"), mib)
	for _, x := range []struct {
		name   string
		length int64
		send   int
		fails  bool
	}{
		{"whole", 4 * mib, 4 * mib, false},
		{"no length", -1, 4 * mib, false},
		{"part", 3*mib + 5, 3*mib + 5, false},
		{"more than announced", 1000, 4 * mib, false},
		{"nothing", 0, 0, false},
		{"short", 4 * mib, 3 * mib, true},
		{"no length, short", -1, 3 * mib, true},
		{"too much", 4*mib + 1, 4*mib + 1, true},
	} {
		s := newSR(t, Config{Type: "ext"})
		v := create(t, s, "v", 4*mib, nil)
		err := v.ImportRaw(io.LimitReader(io.MultiReader(bytes.NewReader(data), bytes.NewReader(data)), int64(x.send)), x.length)
		if x.fails != errors.Is(err, ErrIO) || !x.fails && err != nil {
			t.Errorf("%s: %v", x.name, err)
		}
		n := min(int64(x.send), v.Size())
		if x.length >= 0 {
			n = min(n, x.length)
		}
		want := append(bytes.Clone(data[:n]), make([]byte, v.Size()-n)...)
		if !bytes.Equal(content(t, v), want) {
			t.Errorf("%s: content differs", x.name)
		}
	}
}

func TestImportChunked(t *testing.T) {
	chunk := func(off uint64, p string) []byte {
		b := binary.LittleEndian.AppendUint64(nil, off)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		return append(b, p...)
	}
	end := make([]byte, 12)
	long := string(bytes.Repeat([]byte("long"), mib))
	s := newSR(t, Config{Type: "ext"})
	v := create(t, s, "v", 8*mib, nil)
	stream := bytes.Join([][]byte{chunk(6*mib, "six"), chunk(1, "one"), chunk(100, ""), chunk(mib+1, long), end, []byte("rubbish")}, nil)
	if err := v.ImportChunked(bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8*mib)
	copy(want[6*mib:], "six")
	copy(want[1:], "one")
	copy(want[mib+1:], long)
	if !bytes.Equal(content(t, v), want) {
		t.Error("content differs")
	}
	for name, stream := range map[string][]byte{
		"no end":       chunk(0, "x"),
		"past the end": chunk(8*mib-1, "xy"),
		"far past it":  chunk(1<<63, "x"),
		"cut":          chunk(5, "abcdef")[:15],
	} {
		if err := v.ImportChunked(bytes.NewReader(stream)); !errors.Is(err, ErrIO) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
