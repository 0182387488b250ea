package workload

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// guest describes the content of one virtual machine.
type guest struct {
	seed  uint64 // of the generated content
	name  string
	real  window // its share of the machine's files
	files []realFile
	limit int64 // maximum number of bytes of real files
	words []string

	db, log, archive, dump, noise int64
	rows, members                 int // additional ones in dump and archive on day two
	// fill uses all space, then frees this many bytes.
	fill  bool
	leave int64
}

// later is the time of day two.
var later = epoch.Add(24 * time.Hour)

func (g *guest) path(root, name string) string { return filepath.Join(root, name) }

// dayOne fills an empty file system.
func (g *guest) dayOne(ctx context.Context, root string) error {
	if err := writeFile(g.path(root, "etc/hostname"), epoch, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, g.name)
		return err
	}); err != nil {
		return err
	}
	if _, err := copyReal(ctx, g.files, g.real, root, g.limit); err != nil {
		return err
	}
	write := func(name string, size int64, fill func(io.Writer) error) error {
		if size == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return writeFile(g.path(root, name), epoch, fill)
	}
	if err := write("var/lib/db/orders.ibd", g.db, func(w io.Writer) error { return writeDatabase(w, g.seed, g.db, g.words) }); err != nil {
		return err
	}
	for i := range 4 {
		day := epoch.Add(time.Duration(i-4) * 24 * time.Hour)
		if err := write(fmt.Sprintf("var/log/web/access.log.%d", 3-i), g.log/4, func(w io.Writer) error {
			return writeLog(w, g.seed, day, g.log/4, g.words)
		}); err != nil {
			return err
		}
	}
	if err := write("var/backups/site.tar", g.archive, func(w io.Writer) error { return g.writeArchive(w, 0) }); err != nil {
		return err
	}
	if err := write("var/backups/orders.sql", g.dump, func(w io.Writer) error { return writeDump(w, g.seed, g.dump, 0, g.words) }); err != nil {
		return err
	}
	if err := write("srv/media/0.bin", g.noise, func(w io.Writer) error { return WriteNoise(w, g.seed<<20, g.noise) }); err != nil {
		return err
	}
	if g.fill {
		return g.fillUp(ctx, root)
	}
	return nil
}

// writeArchive archives files that are not on the disk otherwise, and that differ
// between guests.
func (g *guest) writeArchive(w io.Writer, extra int) error {
	win := window{start: g.real.start + g.real.width, width: (1 - g.real.width) / 2}
	if g.seed%2 == 0 {
		win.start += win.width
	}
	if win.start >= 1 {
		win.start--
	}
	return writeArchive(w, g.seed, g.files, win, g.archive, extra, g.words)
}

// fillUp uses every free block, then frees some.
func (g *guest) fillUp(ctx context.Context, root string) error {
	const each = 16 * mib
	var made []string
	var size int64
	for i := uint64(1); ; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		free, err := room(root)
		if err != nil {
			return err
		}
		n := min(free-mib, each)
		if n < mib {
			break
		}
		name := g.path(root, fmt.Sprintf("srv/media/%d.bin", i))
		if err := writeFile(name, epoch, func(w io.Writer) error { return WriteNoise(w, g.seed<<20+i, n) }); err != nil {
			return err
		}
		made, size = append(made, name), size+n
	}
	if size < g.leave {
		return fmt.Errorf("fill the disk of %s: %d bytes were free, %d are to be: less real content is needed", g.name, size, g.leave)
	}
	// The data of the freed blocks must have reached the disk.
	if err := run(ctx, "sync", "-f", root); err != nil {
		return err
	}
	for freed := int64(0); freed < g.leave; freed += each {
		if err := os.Remove(made[0]); err != nil {
			return err
		}
		made = made[1:]
	}
	return nil
}

// dayTwo applies a day's changes of the guest: pages of the database written in
// place, logs appended, archive and dump rewritten, some programs updated, some
// files touched.
func (g *guest) dayTwo(ctx context.Context, root string) error {
	if g.db > 0 {
		if err := touchDatabase(g.path(root, "var/lib/db/orders.ibd"), g.seed, g.db, g.words); err != nil {
			return err
		}
	}
	if g.log > 0 {
		if err := g.appendLog(root); err != nil {
			return err
		}
	}
	// The old archive and dump are removed after the new ones were written.
	renew := func(name string, size int64, fill func(io.Writer) error) error {
		if size == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name = g.path(root, name)
		if err := writeFile(name+".new", later, fill); err != nil {
			return err
		}
		return os.Rename(name+".new", name)
	}
	if err := renew("var/backups/site.tar", g.archive, func(w io.Writer) error { return g.writeArchive(w, g.members) }); err != nil {
		return err
	}
	if err := renew("var/backups/orders.sql", g.dump, func(w io.Writer) error { return writeDump(w, g.seed, g.dump, g.rows, g.words) }); err != nil {
		return err
	}
	if g.noise > 0 {
		if err := writeFile(g.path(root, "srv/media/new.bin"), later, func(w io.Writer) error {
			return WriteNoise(w, g.seed<<20+1<<19, g.noise/32)
		}); err != nil {
			return err
		}
	}
	return g.update(ctx, root)
}

func (g *guest) appendLog(root string) error {
	name := g.path(root, "var/log/web/access.log.0")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeLog(f, g.seed, epoch, g.log/16, g.words); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Chtimes(name, later, later)
}

// update replaces one file in 400 by a new one, as a package update does, and
// touches one in 50.
func (g *guest) update(ctx context.Context, root string) error {
	const fresh = 0.0025
	for _, f := range g.files {
		if !g.real.has(f.mark) || f.size > mib {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name := g.path(root, f.path)
		if _, err := os.Lstat(name); err != nil {
			continue // beyond the limit
		}
		// The mark's lower digits are an independent random choice.
		switch pick := f.mark*1e6 - float64(int64(f.mark*1e6)); {
		case pick < fresh:
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if err := writeFile(name+".dpkg-new", later, func(w io.Writer) error {
				_, err := io.WriteString(w, updated(string(data), g.words))
				return err
			}); err != nil {
				return err
			}
			if err := os.Rename(name+".dpkg-new", name); err != nil {
				return err
			}
		case pick < 0.02:
			if err := os.Chtimes(name, later, later); err != nil {
				return err
			}
		}
	}
	return nil
}

// updated returns the next version of a file: a little text added, and one word
// changed throughout.
func updated(old string, words []string) string {
	return words[len(old)%len(words)] + "\n" + strings.ReplaceAll(old, "err", "erR")
}
