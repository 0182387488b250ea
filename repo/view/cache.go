package view

import (
	"container/list"
	"sync"

	"xenkeep/chunkstore/chunk"
)

// key identifies a cached blob of the repository, independent of the disk.
type key struct {
	kind chunk.Kind
	id   chunk.ID
}

// entry is a blob that is cached or being read.
type entry struct {
	key  key
	size int64         // bytes counted for the limit
	done chan struct{} // closed once value or err is set
	// value is []byte for data, *tree.Node or []tree.Piece for the tree.
	value any
	err   error
}

// cache contains the most recently used blobs. All readers share an entry that is
// being read, so that no blob is read twice concurrently; a failed entry is
// removed.
type cache struct {
	limit int64

	mu    sync.Mutex
	bytes int64
	byKey map[key]*list.Element // the elements are *entry
	lru   list.List             // front: most recently used
}

func newCache(limit int64) *cache {
	return &cache{limit: limit, byKey: make(map[key]*list.Element)}
}

// get returns an entry. If it is new, mine is true, and the caller must fill and
// settle it.
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
		default: // being read: the readers that wait for it keep it alive
		}
	}
	return e, true
}

// settle sets the result of an entry and wakes the readers that wait for it.
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

// drop removes an entry; mu must be held.
func (c *cache) drop(el *list.Element) {
	e := c.lru.Remove(el).(*entry)
	delete(c.byKey, e.key)
	c.bytes -= e.size
}
