package index

import "runtime"

// BulkLookup accepts prefixes in any order and looks them up in approximately the
// order of the index, so that the lookups touch one small part of the index
// after another. Looking up many prefixes in the order in which they arrive
// touches three pages anywhere in the index for each of them; with an index of
// gigabytes this costs microseconds each time.
//
// If no more prefixes can be gathered, because the folder cannot be written or
// because memory already holds gatherMost of them, the prefixes gathered so far
// are looked up immediately.
type BulkLookup struct {
	x     *Index
	found func(p Prefix, at []Location) error
	spool *spool
	at    []Location
}

// gatherMost is the maximum number of prefixes that are gathered if all are in
// memory.
const gatherMost = 1 << 20

// Gather starts gathering prefixes. Found is called with the locations of each
// prefix, including those in hidden packs, in no particular order. At is valid
// only during the call, and is empty for an unknown prefix. If found returns an
// error, the call of Add or Flush that called it ends with this error. The
// caller must close the Gather.
func (x *Index) Gather(found func(p Prefix, at []Location) error) *BulkLookup {
	return &BulkLookup{x: x, found: found, spool: newSpool(x.folder, len(Prefix{}))}
}

// Len returns the number of prefixes that are not looked up yet.
func (g *BulkLookup) Len() int64 { return g.spool.n }

// Add adds a prefix.
func (g *BulkLookup) Add(p Prefix) error {
	if g.spool.room(p[0]) != nil || g.spool.folder.memory() && g.spool.n >= gatherMost {
		if err := g.Flush(); err != nil {
			return err
		}
	}
	g.spool.add(p[:])
	return nil
}

// Flush looks up all prefixes that are not looked up yet.
func (g *BulkLookup) Flush() error {
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

// Close frees the memory and the file of the Gather.
func (g *BulkLookup) Close() { g.spool.close() }
