package xapisim

import "time"

// gcLater starts the SR's garbage collector some time after a deletion.
func (p *Pool) gcLater(srRef string) {
	st := p.stores[srRef]
	if st == nil || st.gcTimer != nil {
		return
	}
	st.gcTimer = time.AfterFunc(p.scaled(p.cfg.GCDelay), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		st.gcTimer = nil
		if p.ctx.Err() == nil {
			p.work.Add(1)
			defer p.work.Done()
			p.gc(srRef)
		}
	})
}

// gc collects an SR's garbage and removes the records of deleted base copies.
// It releases Pool.mu meanwhile, because data may be moved.
func (p *Pool) gc(srRef string) {
	st := p.stores[srRef]
	if st == nil {
		return
	}
	p.mu.Unlock()
	gone, err := st.sr.GC()
	p.mu.Lock()
	if err != nil {
		return
	}
	for _, uuid := range gone {
		if o := p.db.byUUID("VDI", uuid); o != nil {
			p.db.destroy(o)
		}
	}
	if srObj := p.db.find("SR", srRef); srObj != nil {
		for _, vdi := range p.db.refs("VDI", srObj.set("VDIs")) {
			p.syncVDI(vdi)
		}
		p.syncSR(srObj)
	}
}

// GC runs the garbage collector of every SR now.
func (p *Pool) GC() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ref := range sortedKeys(p.stores) {
		p.gc(ref)
	}
}
