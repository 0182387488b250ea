package view

import (
	"container/list"
	"sync"

	"xenkeep/chunkstore/chunk"
)

// key names what is cached: a piece of the repository, whichever disk it is of.
type key struct {
	kind chunk.Kind
	id   chunk.ID
}

// entry is one cached piece, or one on its way.
type entry struct {
	key  key
	size int64         // bytes counted
	done chan struct{} // closed once value or err is set
	// value is []byte for data, *tree.Node or []tree.Piece for the tree.
	value any
	err   error
}

// cache holds what was used last. An entry that is on its way is found by all
// who want it, so that nothing is read twice at once; one that failed is
// forgotten.
type cache struct {
	limit int64

	mu    sync.Mutex
	bytes int64
	byKey map[key]*list.Element // of *entry
	lru   list.List             // front: used last
}

func newCache(limit int64) *cache {
	return &cache{limit: limit, byKey: make(map[key]*list.Element)}
}

// get finds an entry, or makes one that the caller must fill and settle.
func (c *cache) get(k key, size int64) (e *entry, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.byKey[k]; ok {
		c.lru.MoveToFront(el)
		return el.Value.(*entry), false
	}
	e = &entry{key: k, size: size, done: make(chan struct{})}
	c.byKey[k] = c.lru.PushFront(e)
	c.bytes += size
	for el := c.lru.Back(); c.bytes > c.limit && el != nil; {
		old := el
		el = el.Prev()
		select {
		case <-old.Value.(*entry).done:
			c.drop(old)
		default: // on its way: whoever waits for it holds it
		}
	}
	return e, true
}

// settle makes an entry known to those who wait.
func (c *cache) settle(e *entry, value any, err error) {
	e.value, e.err = value, err
	close(e.done)
	if err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.byKey[e.key]; ok && el.Value.(*entry) == e {
		c.drop(el)
	}
}

// drop forgets an entry; mu must be held.
func (c *cache) drop(el *list.Element) {
	e := c.lru.Remove(el).(*entry)
	delete(c.byKey, e.key)
	c.bytes -= e.size
}
