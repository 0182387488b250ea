package inspect

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// vgText is a volume group as described by its metadata.
type vgText struct {
	name, id string
	seqno    int64
	extent   int64 // bytes
	pvs      map[string]vgPV
	lvs      []vgLV // by name
}

type vgPV struct {
	id    string
	start int64 // sectors: the position of extent 0
}

type vgLV struct {
	name, id string
	visible  bool
	segments []vgSegment // by position
}

type vgSegment struct {
	start, extents int64
	kind           string
	stripeSize     int64 // sectors
	stripes        []vgStripe
}

type vgStripe struct {
	pv    string
	start int64 // extents
}

// node is a value of LVM's metadata: a text, an integer, a list or a section.
type node struct {
	text    string
	number  int64
	list    []node
	section map[string]node
}

// parser parses LVM's metadata (lib/config of LVM2, as lvm.conf(5) describes
// it).
type parser struct {
	s     string
	depth int
	nodes *int64 // number that may still be created
}

var (
	errSyntax = errors.New("metadata cannot be read")
	errLarge  = errors.New("metadata holds too many values")
	errDeep   = errors.New("metadata is nested too deeply")
)

// enter begins a section or a list; the caller ends it with p.depth--.
func (p *parser) enter() error {
	if p.depth++; p.depth > maxDepth {
		return errDeep
	}
	return nil
}

// count counts a value.
func (p *parser) count() error {
	if *p.nodes--; *p.nodes < 0 {
		return errLarge
	}
	return nil
}

func (p *parser) space() {
	for {
		p.s = strings.TrimLeft(p.s, " \t\r\n")
		if !strings.HasPrefix(p.s, "#") {
			return
		}
		_, p.s, _ = strings.Cut(p.s, "\n")
	}
}

func (p *parser) take(c string) bool {
	p.space()
	if strings.HasPrefix(p.s, c) {
		p.s = p.s[len(c):]
		return true
	}
	return false
}

func (p *parser) word() string {
	p.space()
	n := strings.IndexAny(p.s, " \t\r\n={}[],\"#")
	if n < 0 {
		n = len(p.s)
	}
	w := p.s[:n]
	p.s = p.s[n:]
	return w
}

// sectionBody parses names and their values up to a closing brace, or the end.
func (p *parser) sectionBody(inner bool) (map[string]node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	out := make(map[string]node)
	for {
		p.space()
		switch {
		case inner && p.take("}"), !inner && p.s == "":
			return out, nil
		case p.s == "":
			return nil, errSyntax
		}
		name := p.word()
		if name == "" {
			return nil, errSyntax
		}
		if err := p.count(); err != nil {
			return nil, err
		}
		switch {
		case p.take("{"):
			s, err := p.sectionBody(true)
			if err != nil {
				return nil, err
			}
			out[name] = node{section: s}
		case p.take("="):
			v, err := p.value()
			if err != nil {
				return nil, err
			}
			out[name] = v
		default:
			return nil, errSyntax
		}
	}
}

func (p *parser) value() (n node, err error) {
	switch {
	case p.take("["):
		if err := p.enter(); err != nil {
			return n, err
		}
		defer func() { p.depth-- }()
		for !p.take("]") {
			p.space()
			if p.s == "" {
				return n, errSyntax
			}
			if err := p.count(); err != nil {
				return n, err
			}
			v, err := p.value()
			if err != nil {
				return n, err
			}
			n.list = append(n.list, v)
			p.take(",")
		}
		return n, nil
	case p.take("\""):
		for i := 0; i < len(p.s); i++ {
			switch p.s[i] {
			case '\\':
				i++
			case '"':
				n.text = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(p.s[:i])
				p.s = p.s[i+1:]
				return n, nil
			}
		}
		return n, errSyntax
	}
	w := p.word()
	if w == "" {
		return n, errSyntax
	}
	if n.number, err = strconv.ParseInt(w, 10, 64); err != nil {
		n.text, err = w, nil
	}
	return n, err
}

// parseVG parses the metadata of a volume group. It subtracts the number of
// parsed values from nodes.
func parseVG(text string, nodes *int64) (*vgText, error) {
	p := &parser{s: text, nodes: nodes}
	top, err := p.sectionBody(false)
	if err != nil {
		return nil, err
	}
	for name, n := range top {
		s := n.section
		if s == nil || s["id"].text == "" || s["extent_size"].number <= 0 {
			continue
		}
		g := &vgText{name: name, id: s["id"].text, seqno: s["seqno"].number, extent: s["extent_size"].number * sector, pvs: map[string]vgPV{}}
		if g.extent > 1<<40 {
			return nil, errSyntax
		}
		for pv, n := range s["physical_volumes"].section {
			x := vgPV{n.section["id"].text, n.section["pe_start"].number}
			if x.start < 0 || x.start > 1<<50 {
				return nil, errSyntax
			}
			g.pvs[pv] = x
		}
		for lv, n := range s["logical_volumes"].section {
			v := vgLV{name: lv, id: n.section["id"].text}
			for _, st := range n.section["status"].list {
				v.visible = v.visible || st.text == "VISIBLE"
			}
			for name, n := range n.section {
				if !strings.HasPrefix(name, "segment") || n.section == nil {
					continue
				}
				x := vgSegment{
					start: n.section["start_extent"].number, extents: n.section["extent_count"].number,
					kind: n.section["type"].text, stripeSize: n.section["stripe_size"].number,
				}
				list := n.section["stripes"].list
				for i := 0; i+1 < len(list); i += 2 {
					if s := list[i+1].number; s < 0 || s > 1<<60/g.extent {
						return nil, errSyntax
					}
					x.stripes = append(x.stripes, vgStripe{list[i].text, list[i+1].number})
				}
				if x.stripeSize < 0 || x.stripeSize > 1<<40 {
					return nil, errSyntax
				}
				if x.start < 0 || x.extents < 0 || x.extents > 1<<40/g.extent*1024 {
					return nil, errSyntax
				}
				v.segments = append(v.segments, x)
			}
			slices.SortFunc(v.segments, func(a, b vgSegment) int { return cmp.Compare(a.start, b.start) })
			at := int64(0)
			for _, x := range v.segments {
				if x.start != at {
					return nil, fmt.Errorf("logical volume %s has a gap at extent %d: %w", lv, at, errSyntax)
				}
				at += x.extents
			}
			g.lvs = append(g.lvs, v)
		}
		slices.SortFunc(g.lvs, func(a, b vgLV) int { return strings.Compare(a.name, b.name) })
		return g, nil
	}
	return nil, errSyntax
}
