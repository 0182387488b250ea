package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"xenkeep/chunkstore/seal"
)

// WriterGroup is a set of writers whose snapshots are counted together by retention.
// The config lists groups. All full keys that are in no group are one group, because
// a full key can do everything anyway; a write-only key that is in no group is a
// group of its own, so that the thief of one cannot displace snapshots of others.
type WriterGroup struct {
	Name    string   `json:"name"`
	Writers []string `json:"writers"` // IDs, hex
}

// ErrGroup is returned for a name that is not valid as the name of a group, or that
// is unknown.
var ErrGroup = errors.New("no such group of keys")

var groupName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// group returns the group of a writer: the name of its group in the config preceded
// by "group ", its ID if it has a write-only key, or "".
func (c *Config) group(writer seal.WriterID, role seal.Role) string {
	id := writer.String()
	for _, g := range c.Groups {
		if slices.Contains(g.Writers, id) {
			return "group " + g.Name
		}
	}
	if role == seal.Full {
		return ""
	}
	return id
}

// Group identifies the group of writers that retention counts the snapshot in.
func (s *Snapshot) Group() string { return s.group }

// AsOwn makes s look as if the key in use had written it, and returns it: for a
// snapshot that is only planned.
func (r *Repository) AsOwn(s *Snapshot) *Snapshot {
	s.writer = r.keys.Cert.Writer()
	s.group = r.config.group(s.writer, r.keys.Cert.Role())
	return s
}

// GroupText describes a group for people.
func GroupText(group string) string {
	switch {
	case group == "":
		return "full keys"
	case strings.HasPrefix(group, "group "):
		return group
	}
	return "key " + group[:min(8, len(group))]
}

// SetGroup puts writers into the group with this name, which is created if it does
// not exist; they leave the groups that they were in. With name "" they are in no
// group afterwards. Empty groups are removed. It needs a full key.
func (r *Repository) SetGroup(ctx context.Context, name string, writers []string) error {
	if err := r.NeedsFull("change groups of keys"); err != nil {
		return err
	}
	if name != "" && !groupName.MatchString(name) {
		return fmt.Errorf("%q: a group's name has letters, digits, dots, dashes and underscores: %w", name, ErrGroup)
	}
	return r.changeConfig(ctx, func(fields map[string]json.RawMessage) error {
		var groups []WriterGroup
		if raw, ok := fields["groups"]; ok {
			if err := json.Unmarshal(raw, &groups); err != nil {
				return fmt.Errorf("config: %v: %w", err, seal.ErrCorrupt)
			}
		}
		for i := range groups {
			groups[i].Writers = slices.DeleteFunc(groups[i].Writers, func(w string) bool { return slices.Contains(writers, w) })
		}
		if name != "" {
			i := slices.IndexFunc(groups, func(g WriterGroup) bool { return g.Name == name })
			if i < 0 {
				i = len(groups)
				groups = append(groups, WriterGroup{Name: name})
			}
			groups[i].Writers = append(groups[i].Writers, writers...)
			slices.Sort(groups[i].Writers)
		}
		groups = slices.DeleteFunc(groups, func(g WriterGroup) bool { return len(g.Writers) == 0 })
		if len(groups) == 0 {
			delete(fields, "groups")
			return nil
		}
		raw, err := json.Marshal(groups)
		fields["groups"] = raw
		return err
	})
}
