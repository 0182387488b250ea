package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// place is the line of a key in a file, and its value if that is a number.
type place struct {
	line   int
	number string
}

// placesOf returns the places of the keys of a valid TOML file, by their names in
// problems: for example "jobs.n.rules[1].keep".
func placesOf(text []byte) map[string]place {
	found := make(map[string]place)
	count := make(map[string]int) // of arrays of tables
	var p unstable.Parser
	p.Reset(text)
	// If a part of a key names an array of tables, it means the last of them.
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

// locate sets the lines of problems that begin with a key: the line of the key, or of
// the table in which it is missing.
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
