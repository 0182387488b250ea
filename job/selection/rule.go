package selection

import (
	"fmt"
	"slices"
	"strings"

	"xenkeep/job/config"
	"xenkeep/job/pyre"
	"xenkeep/xapi"
)

// rule is a rule of the config, its patterns compiled.
type rule struct {
	config.Rule
	like []*pyre.Pattern
}

func compileRules(j *config.Job) ([]rule, error) {
	var list []rule
	for _, r := range j.Rules {
		x := rule{Rule: r}
		for _, text := range r.Patterns {
			p, err := pyre.Compile(text)
			if err != nil {
				return nil, err
			}
			x.like = append(x.like, p)
		}
		list = append(list, x)
	}
	if j.VmBackup != nil {
		list = append(list, vmBackupRules(j.VmBackup)...)
	}
	return list, nil
}

func (r *rule) applies(vm *xapi.VM) (bool, error) {
	if slices.Contains(r.Names, vm.NameLabel) || slices.ContainsFunc(r.UUIDs, func(u string) bool { return strings.EqualFold(u, vm.UUID) }) ||
		slices.ContainsFunc(r.Tags, func(t string) bool { return slices.Contains(vm.Tags, t) }) {
		return true, nil
	}
	for _, p := range r.like {
		if ok, err := p.Match(vm.NameLabel); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (r *rule) apply(v *VM, first *bool) {
	if r.Priority != nil {
		v.Priority = *r.Priority
	}
	if r.Disks != "" {
		*first = r.Disks == "first"
	}
	if len(r.Snapshot) > 0 {
		v.Snapshot = r.Snapshot
	}
	if r.Keep != nil {
		v.Keep = r.Keep.Policy()
	}
}

// vmBackupRules returns the lines of VmBackup's config in the order of their
// precedence: each decides about both retention and disks.
func vmBackupRules(v *config.VmBackup) []rule {
	var list []rule
	for _, l := range v.Lines() {
		keep := l.Keep
		if keep == 0 {
			keep = v.MaxBackups
		}
		r := rule{Rule: config.Rule{Disks: "all", Keep: &config.Keep{Last: config.Count(keep)}}}
		if l.VDI() {
			r.Disks = "first"
		}
		if l.Simple() {
			r.Names = []string{l.Name}
		} else {
			r.like = []*pyre.Pattern{l.Pattern}
		}
		list = append(list, r)
	}
	return list
}

// asVmBackup selects like VmBackup: excludes first, simple names before patterns, and
// every line that matches nothing is reported.
func (c *chooser) asVmBackup(v *config.VmBackup) error {
	for _, l := range v.Exclude {
		n := 0
		for _, vm := range c.real {
			ok, err := l.Matches(vm.NameLabel)
			if err != nil {
				return err
			}
			if ok {
				n++
				c.why[vm.Ref] = fmt.Sprintf("excluded by line %d", l.Line)
			}
		}
		if n == 0 {
			c.find(Error, l.Name, "correct the line, or take it out", "line %d: %s: no VM is meant", l.Line, &l)
		}
	}
	lines := v.Lines()
	vdi := make(map[xapi.Ref]bool)
	for _, simple := range []bool{true, false} {
		for _, l := range lines {
			if l.Simple() != simple {
				continue
			}
			var one *xapi.VM // the VM with the simple name
			if simple {
				if one, _ = c.named(l.Name); one == nil {
					c.name(l.Name, "")
					f := &c.res.Findings[len(c.res.Findings)-1]
					f.Text = fmt.Sprintf("line %d: %s: %s", l.Line, &l, f.Text)
					continue
				}
			}
			n := 0
			for _, vm := range c.real {
				ok, err := l.Matches(vm.NameLabel)
				if err != nil {
					return err
				}
				if !ok || one != nil && vm != one {
					continue
				}
				n++
				if l.VDI() {
					vdi[vm.Ref] = true
				}
				if _, chosen := c.by[vm.Ref]; !chosen {
					c.by[vm.Ref] = l.String()
				}
			}
			if n == 0 {
				c.missing(l.Name, "correct the line, or take it out", "line %d: %s: no VM is meant", l.Line, &l)
			}
		}
	}
	for _, vm := range c.real {
		if !vdi[vm.Ref] {
			continue
		}
		for _, l := range lines {
			if ok, err := l.Matches(vm.NameLabel); err != nil {
				return err
			} else if ok && !l.VDI() {
				c.find(Note, vm.NameLabel, "", "vdi-export wins over line %d, %s", l.Line, &l)
				break
			}
		}
	}
	return nil
}
