package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// place is where a key of a file stands, and its value where that is a number.
type place struct {
	line   int
	number string
}

// placesOf finds the keys of a TOML file that is right as TOML. They are named
// as problems name them: "jobs.n.rules[1].keep".
func placesOf(text []byte) map[string]place {
	found := make(map[string]place)
	count := make(map[string]int) // of arrays of tables
	var p unstable.Parser
	p.Reset(text)
	// A part of a key that names an array of tables means the last of them.
	path := func(base string, n *unstable.Node, array bool) string {
		for it := n.Key(); it.Next(); {
			k := it.Node()
			if base != "" {
				base += "."
			}
			base += string(k.Data)
			if array && it.IsLast() {
				count[base]++
			}
			if c := count[base]; c > 0 {
				base += "[" + strconv.Itoa(c-1) + "]"
			}
			if _, seen := found[base]; !seen {
				found[base] = place{line: p.Shape(k.Raw).Start.Line}
			}
		}
		return base
	}
	var value func(at string, v *unstable.Node)
	value = func(at string, v *unstable.Node) {
		switch v.Kind {
		case unstable.Integer, unstable.Float:
			x := found[at]
			x.number = string(v.Data)
			found[at] = x
		case unstable.InlineTable:
			for it := v.Children(); it.Next(); {
				kv := it.Node()
				value(path(at, kv, false), kv.Value())
			}
		case unstable.Array:
			i := 0
			for it := v.Children(); it.Next(); i++ {
				x := fmt.Sprintf("%s[%d]", at, i)
				found[x] = place{line: found[at].line}
				value(x, it.Node())
			}
		}
	}
	table := ""
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table:
			table = path("", e, false)
		case unstable.ArrayTable:
			table = path("", e, true)
		case unstable.KeyValue:
			value(path(table, e, false), e.Value())
		}
	}
	return found
}

// locate gives problems that begin with a key, as those that check finds, the
// line where the key stands, or the table that it is missing from.
func (p *Problems) locate(places map[string]place) {
	for i := range p.List {
		x := &p.List[i]
		key, _, _ := strings.Cut(x.Text, ": ")
		for x.Line == 0 && key != "" {
			x.Line = places[key].line
			key = key[:max(strings.LastIndexAny(key, ".["), 0)]
		}
	}
	slices.SortStableFunc(p.List, func(a, b Problem) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Text, b.Text)) })
}
