package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// version is part of the cache's name: increase it with every change of the
// content.
const version = 1

// Image is a disk on both days. DayTwo is empty if only one day is used.
type Image struct {
	Name   string `json:"name"`
	DayOne string `json:"day_one"`
	DayTwo string `json:"day_two,omitempty"`
	Size   int64  `json:"size"`
	Data   int64  `json:"data"`               // of day one, without holes
	Data2  int64  `json:"data_two,omitempty"` // of day two
}

// Names of the images.
const (
	Thin    = "thin"    // a VM on a disk that is mostly unallocated
	Other   = "other"   // a second VM that shares many of its files; day one
	Old     = "old"     // thin's VM with its partition at sector 63; day one
	Full    = "full"    // a VM on a disk without holes
	Archive = "archive" // a disk that contains only a tar, which shifts on day two
	Dump    = "dump"    // a disk that contains only an SQL dump, which shifts on day two
)

// Build creates the named images in dir unless they exist, and reports each one to
// note.
func Build(ctx context.Context, dir string, s Scale, names []string, note func(format string, args ...any)) (map[string]Image, error) {
	dir = filepath.Join(dir, fmt.Sprintf("images-v%d-%s", version, s.Name))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	b := &builder{scale: s, dir: dir, note: note}
	images := make(map[string]Image)
	for _, name := range names {
		img, err := b.image(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("build image %s: %w", name, err)
		}
		images[name] = img
	}
	return images, nil
}

type builder struct {
	scale Scale
	dir   string
	note  func(format string, args ...any)
	files []realFile
	total int64
}

// image returns an image from the folder, or creates it. Its description is written
// last.
func (b *builder) image(ctx context.Context, name string) (Image, error) {
	var img Image
	described := filepath.Join(b.dir, name+".json")
	data, err := os.ReadFile(described)
	if err == nil {
		err = json.Unmarshal(data, &img)
	}
	if err == nil {
		for _, f := range []string{img.DayOne, img.DayTwo} {
			if f != "" && err == nil {
				_, err = os.Stat(f)
			}
		}
		if err == nil {
			return img, nil
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	start := time.Now()
	if b.files == nil {
		if b.files, b.total, err = realFiles("/usr"); err != nil {
			return img, err
		}
	}
	if img, err = b.make(ctx, name); err != nil {
		return img, err
	}
	if data, err = json.MarshalIndent(img, "", "  "); err != nil {
		return img, err
	}
	b.note("built image %s: %d MiB, %d MiB of them data, in %.0f s", name, img.Size>>20, img.Data>>20, time.Since(start).Seconds())
	return img, os.WriteFile(described, data, 0o644)
}

// make builds an image; the names above describe its parts.
func (b *builder) make(ctx context.Context, name string) (Image, error) {
	s := b.scale
	g := &guest{
		seed: 1, name: "vm-" + name, files: b.files, limit: s.Real, words: vocabulary(7),
		real: windowOf(0.1, s.Real, b.total),
		db:   s.DB, log: s.Log, archive: s.Archive, dump: s.Dump, noise: s.Noise, rows: s.Rows, members: s.Members,
	}
	l := layout{size: s.Thin, start: alignedStart, gpt: true, uuid: fmt.Sprintf("5eed0000-0000-4000-8000-%012x", len(name)*256+int(name[0]))}
	days := 2
	switch name {
	case Thin:
	case Other: // three quarters of thin's files, and data of its own
		g.seed = 2
		g.real.start += g.real.width / 4
		l.gpt, days = false, 1
	case Old:
		l.start, l.gpt, days = oldStart, false, 1
	case Full:
		g.seed = 3
		l.size, g.limit, g.db = s.Full, s.FullReal, s.FullDB
		g.real = windowOf(0.1, s.FullReal, b.total)
		g.fill, g.leave = true, s.Archive+s.Dump+s.Log+s.Noise
	case Archive, Dump:
		g.seed, l.size = 4, s.Pair
		g.limit, g.db, g.log, g.noise = 0, 0, 0, 0
		g.real = window{start: 0.5}
		if name == Archive {
			g.dump = 0
		} else {
			g.archive = 0
		}
	default:
		return Image{}, errors.New("no such image")
	}
	img := Image{Name: name, Size: l.size, DayOne: filepath.Join(b.dir, name+"-1.raw")}
	if err := format(ctx, img.DayOne, l); err != nil {
		return img, err
	}
	if err := within(ctx, img.DayOne, l, func(root string) error { return g.dayOne(ctx, root) }); err != nil {
		return img, err
	}
	if g.fill {
		if err := fillHoles(img.DayOne); err != nil {
			return img, err
		}
	}
	var err error
	if img.Data, err = DataBytes(img.DayOne); err != nil || days == 1 {
		return img, err
	}
	img.DayTwo = filepath.Join(b.dir, name+"-2.raw")
	if err := CopySparse(ctx, img.DayOne, img.DayTwo); err != nil {
		return img, err
	}
	if err := within(ctx, img.DayTwo, l, func(root string) error { return g.dayTwo(ctx, root) }); err != nil {
		return img, err
	}
	if g.fill {
		if err := fillHoles(img.DayTwo); err != nil {
			return img, err
		}
	}
	img.Data2, err = DataBytes(img.DayTwo)
	return img, err
}
