package index

import "runtime"

// Gather takes prefixes in any order and finds them in about that of the index,
// so that memory sees one small part of it after the other. Looking up each
// prefix of many as it comes touches three pages anywhere in the index; where
// that has gigabytes, it costs microseconds each time.
//
// Where there is no room to gather more, what is there is looked up at once.
type Gather struct {
	x     *Index
	found func(p Prefix, at []Location) error
	spool *spool
	at    []Location
}

// gatherMost is how many prefixes are gathered where all are in memory.
const gatherMost = 1 << 20

// Gather begins a gathering. Found is told where each prefix lies, hidden packs
// too, in no order; at is good during the call alone, and empty for an unknown
// one. An error of it ends the call of Add or Flush that it was called from. The
// gathering must be closed.
func (x *Index) Gather(found func(p Prefix, at []Location) error) *Gather {
	return &Gather{x: x, found: found, spool: newSpool(x.folder, len(Prefix{}))}
}

// Len is how many prefixes wait to be looked up.
func (g *Gather) Len() int64 { return g.spool.n }

// Add takes a prefix.
func (g *Gather) Add(p Prefix) error {
	if g.spool.room(p[0]) != nil || g.spool.folder.memory() && g.spool.n >= gatherMost {
		if err := g.Flush(); err != nil {
			return err
		}
	}
	g.spool.add(p[:])
	return nil
}

// Flush looks up all prefixes that wait.
func (g *Gather) Flush() error {
	v := g.x.view.Load()
	defer runtime.KeepAlive(v)
	for i := range spoolParts {
		if err := g.spool.each(byte(i), func(prefixes []byte) error {
			for ; len(prefixes) > 0; prefixes = prefixes[len(Prefix{}):] {
				p := Prefix(prefixes)
				hi, lo := split(p)
				g.at = v.gather(hi, lo, g.at[:0])
				if err := g.found(p, g.at); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	g.spool.clear()
	return nil
}

// Close frees what the gathering holds.
func (g *Gather) Close() { g.spool.close() }
