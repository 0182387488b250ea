package view

import (
	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
)

// stream is a sequential reader.
type stream struct {
	next   int64 // offset of its next expected read
	ahead  int64 // data up to this offset is read ahead
	window int64 // number of bytes that it is worth reading ahead
}

const (
	// slack is how far from the expected offset a read may begin: the kernel's own
	// read-ahead comes in parts, and out of order.
	slack      = 1 << 20
	firstAhead = 512 << 10
)

// follow detects sequential readers and reads ahead of them: further with each
// step, up to the View's limit.
func (d *Disk) follow(off, n int64) {
	limit := d.v.ahead
	if limit == 0 {
		return
	}
	d.mu.Lock()
	i := 0
	for i < len(d.streams)-1 && (d.streams[i].next == 0 || off < d.streams[i].next-slack || off > d.streams[i].next+slack) {
		i++
	}
	s := d.streams[i]
	if s.next == 0 || off < s.next-slack || off > s.next+slack {
		s = stream{next: off + n, ahead: off + n} // a new one replaces the oldest
	} else {
		s.next = max(s.next, off+n)
		s.window = min(max(2*s.window, firstAhead), limit)
	}
	from, to := max(s.ahead, s.next), min(s.next+s.window, d.root.Size)
	if to-from < s.window/2 && to < d.root.Size {
		to = from // enough data is being read
	}
	s.ahead = max(s.ahead, to)
	copy(d.streams[1:i+1], d.streams[:i])
	d.streams[0] = s
	d.mu.Unlock()
	if from < to {
		d.v.begin(func() { d.prefetch(from, to) })
	}
}

// prefetch starts to read [from, to). Errors are ignored; a later read of the same
// data returns them.
func (d *Disk) prefetch(from, to int64) {
	for off := from; off < to; {
		b := off / disk.BlockSize
		stop := min(to, (b+1)*disk.BlockSize)
		pieces, err := d.Pieces(d.v.ctx, b)
		if err != nil {
			return
		}
		var rq request
		for _, p := range pieces {
			start := b*disk.BlockSize + int64(p.Offset)
			if !p.IsZero() && start < stop && start+int64(p.Length) > off {
				d.want(&rq, p)
			}
		}
		d.v.load(chunk.Data, rq)
		off = stop
	}
}
