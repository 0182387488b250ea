package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"xenkeep/job"
	"xenkeep/job/browse"
	"xenkeep/job/exchange"
	"xenkeep/job/nightly"
	"xenkeep/job/poolsnap"
	"xenkeep/job/report"
	"xenkeep/job/restore"
	"xenkeep/xapi/xapisim"
)

// The reference is docs/reference.md and the pages in docs/reference/. Each page
// is read as a list of headings with their paths. In the rows of tables whose
// first cell is code, that cell names a flag, a variable or a field. "Flags:"
// lines name groups of flags.
type section struct {
	page string   // for example "backup.md"; empty for docs/reference.md
	path []string // headings above, and its own
	rows map[string]string
	more []string // groups of flags
}

var (
	heading = regexp.MustCompile(`^(#+) +(.*)$`)
	row     = regexp.MustCompile("^\\| *`?([^|`]+?)`?(?:,[^|]*)? *\\| *(.*?) *\\|")
	group   = regexp.MustCompile(`\[([^\]]+)\]\((?:common\.md)?#([a-z-]+)\)`)
)

// readReference returns the sections of all pages. A heading below the second
// level belongs to the section above it, except for groups of flags.
func readReference(t *testing.T) []section {
	t.Helper()
	pages, err := filepath.Glob("../../docs/reference/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages in docs/reference: %v", err)
	}
	all := readPage(t, "../../docs/reference.md", "")
	for _, name := range pages {
		all = append(all, readPage(t, name, filepath.Base(name))...)
	}
	return all
}

func readPage(t *testing.T, name, page string) []section {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var all []section
	var path []string
	code := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		if code {
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			path = append(slices.Clip(path[:min(len(path), len(m[1])-1)]), strings.ReplaceAll(m[2], "`", ""))
			if len(path) < 3 || path[1] == "Flag groups" {
				all = append(all, section{page: page, path: path, rows: map[string]string{}})
			}
			continue
		}
		if len(all) == 0 {
			continue
		}
		s := &all[len(all)-1]
		m := row.FindStringSubmatch(line)
		// Tables in a subsection explain values; only flags in them are documented.
		explains := len(path) > 2 && path[1] != "Flag groups" && m != nil && !strings.HasPrefix(m[1], "--")
		if m != nil && !explains && !strings.HasPrefix(m[1], "---") {
			if _, twice := s.rows[m[1]]; twice && codeCell.MatchString(line) {
				t.Errorf("%s: %v: two rows for %s", page, s.path, m[1])
			}
			s.rows[m[1]] = m[2]
		}
		if strings.HasPrefix(line, "Flags: ") {
			for _, g := range group.FindAllStringSubmatch(line, -1) {
				s.more = append(s.more, g[1])
			}
		}
	}
	return all
}

// codeCell matches a row whose first cell is code. Only such rows document
// something, so that a section may have several tables with the same header.
var codeCell = regexp.MustCompile("^\\| *`")

// keep adds s under name, and reports a second section of that name.
func keep(t *testing.T, found map[string]section, name string, s section) {
	t.Helper()
	if other, twice := found[name]; twice {
		t.Errorf("%s is documented on docs/reference/%s and on docs/reference/%s", name, other.page, s.page)
	}
	found[name] = s
}

// flagGroups returns the sections below "Flag groups" of common.md.
func flagGroups(t *testing.T, all []section) map[string]section {
	t.Helper()
	found := make(map[string]section)
	for _, s := range all {
		if len(s.path) == 3 && s.path[1] == "Flag groups" {
			keep(t, found, s.path[2], s)
		}
	}
	return found
}

// commandSections returns the section of each command, from all pages but json.md.
func commandSections(t *testing.T, all []section) map[string]section {
	t.Helper()
	found := make(map[string]section)
	for _, s := range all {
		if s.page != "json.md" && len(s.path) == 2 && strings.HasPrefix(s.path[1], "xenkeep ") {
			keep(t, found, s.path[1], s)
		}
	}
	return found
}

// jsonSections returns the sections of json.md, one for each type of line.
func jsonSections(t *testing.T, all []section) map[string]section {
	t.Helper()
	found := make(map[string]section)
	for _, s := range all {
		if s.page == "json.md" && len(s.path) == 2 {
			keep(t, found, s.path[1], s)
		}
	}
	return found
}

// only returns the rows of section h of docs/reference.md.
func only(t *testing.T, all []section, h string) map[string]string {
	t.Helper()
	for _, s := range all {
		if s.page == "" && len(s.path) == 2 && s.path[1] == h {
			return s.rows
		}
	}
	t.Fatalf("docs/reference.md has no section %q", h)
	return nil
}

func flagName(cell string) string {
	name, _, _ := strings.Cut(cell, " ")
	return name
}

func compare(t *testing.T, what string, documented, real []string) {
	t.Helper()
	for _, d := range documented {
		if !slices.Contains(real, d) {
			t.Errorf("%s: the reference has %s, the program does not", what, d)
		}
	}
	for _, r := range real {
		if !slices.Contains(documented, r) {
			t.Errorf("%s: the reference lacks %s", what, r)
		}
	}
}

func commands() *cobra.Command {
	var began bool
	root := newRootCommand()
	prepare(root, new(diagnostics), &began)
	return root
}

// Every command and flag is on a page of the reference, and no other is.
func TestReferenceCommands(t *testing.T) {
	all := readReference(t)
	groups, sections := flagGroups(t, all), commandSections(t, all)
	var documented, real []string
	for name := range sections {
		documented = append(documented, name)
	}
	walk(commands(), func(cmd *cobra.Command) {
		if !cmd.HasParent() || cmd.Name() == "help" || cmd.HasSubCommands() && cmd.Name() != "sim" && cmd.Name() != "snapshots" {
			return
		}
		name := cmd.CommandPath()
		real = append(real, name)
		s := sections[name]
		var want, got []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" {
				want = append(want, "--"+f.Name)
			}
		})
		for cell := range s.rows {
			if strings.HasPrefix(cell, "--") {
				got = append(got, flagName(cell))
			}
		}
		for _, g := range s.more {
			if _, known := groups[g]; !known {
				t.Errorf("%s: no group of flags is called %s", name, g)
			}
			for cell := range groups[g].rows {
				if strings.HasPrefix(cell, "--") {
					got = append(got, flagName(cell))
				}
			}
		}
		compare(t, name, got, want)
	})
	compare(t, "commands", documented, real)

	var want, got []string
	commands().PersistentFlags().VisitAll(func(f *pflag.Flag) { want = append(want, "--"+f.Name) })
	for cell := range groups["diagnostics"].rows {
		if strings.HasPrefix(cell, "--") {
			got = append(got, flagName(cell))
		}
	}
	compare(t, "flags of every command", got, want)
}

// docs/reference.md links each command, each group of flags and each page.
func TestReferenceIndex(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	all := readReference(t)
	for _, found := range []map[string]section{commandSections(t, all), flagGroups(t, all)} {
		for name, s := range found {
			link := "(reference/" + s.page + "#" + strings.ReplaceAll(name, " ", "-") + ")"
			if !strings.Contains(string(text), link) {
				t.Errorf("docs/reference.md has no link to %s: %s", name, link)
			}
		}
	}
	for _, s := range all {
		if s.page != "" && len(s.path) == 1 && !strings.Contains(string(text), "(reference/"+s.page+")") {
			t.Errorf("docs/reference.md has no link to docs/reference/%s", s.page)
		}
	}
}

func TestReferenceEnvironment(t *testing.T) {
	rows := only(t, readReference(t), "Environment")
	var documented, real []string
	for name, flag := range rows {
		if strings.HasPrefix(name, "XENKEEP_") {
			documented = append(documented, name+" "+strings.Trim(flag, "`"))
		}
	}
	for _, v := range variables {
		flag := ""
		if v.flag != "" {
			flag = "--" + v.flag
		}
		real = append(real, strings.TrimSpace(v.name)+" "+flag)
	}
	compare(t, "variables", documented, real)
	// A variable without its flag would do nothing.
	flags := make(map[string]bool)
	walk(commands(), func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
	})
	for _, v := range variables {
		if v.flag != "" && !flags[v.flag] {
			t.Errorf("%s: no command has --%s", v.name, v.flag)
		}
	}
}

func TestReferenceExitCodes(t *testing.T) {
	var documented, real []string
	for code, meaning := range only(t, readReference(t), "Exit codes") {
		if code != "code" {
			documented = append(documented, code+" "+meaning)
		}
	}
	for code, meaning := range exitMeanings {
		real = append(real, fmt.Sprintf("%d %s", code, meaning))
	}
	compare(t, "exit codes", documented, real)
}

// lineTypes are the lines that commands print with --json.
var lineTypes = map[string]any{
	"xenkeep init: repository":           initLine{},
	"xenkeep backup: report":             report.Report{},
	"xenkeep plan: plan":                 nightly.Plan{},
	"xenkeep notify test: notification":  notificationLine{},
	"xenkeep notify test: summary":       notifySummary{},
	"xenkeep coverage: vm":               nightly.Covered{},
	"xenkeep coverage: summary":          coverageSummary{},
	"xenkeep backup: summary":            job.Summary{},
	"xenkeep snapshots: snapshot":        snapshotLine{},
	"xenkeep snapshots: bad_snapshot":    badLine{},
	"xenkeep snapshots: summary":         snapshotsSummary{},
	"xenkeep copy: copied":               copiedLine{},
	"xenkeep copy: summary":              copySummary{},
	"xenkeep repo probe: probe":          probeLine{},
	"xenkeep repo probe: summary":        probeSummary{},
	"xenkeep repo lock: lock":            lockLine{},
	"xenkeep repo upgrade: feature":      featureLine{},
	"xenkeep repo upgrade: summary":      upgradeSummary{},
	"xenkeep repair versions: version":   versionFindingLine{},
	"xenkeep repair versions: summary":   versionsSummary{},
	"xenkeep repair junk: junk":          junkFindingLine{},
	"xenkeep repair junk: summary":       junkSummary{},
	"xenkeep forget: decision":           decisionLine{},
	"xenkeep forget: summary":            forgetSummary{},
	"xenkeep prune: prune":               pruneLine{},
	"xenkeep restore: restored":          restore.Restored{},
	"xenkeep restore: drill":             restore.Drill{},
	"xenkeep key list: key":              keyLine{},
	"xenkeep key packs: pack":            keyPackLine{},
	"xenkeep check: finding":             findingLine{},
	"xenkeep check: summary":             checkSummary{},
	"xenkeep doctor: finding":            doctorLine{},
	"xenkeep cleanup: leftover":          leftoverLine{},
	"xenkeep cleanup: summary":           cleanupSummary{},
	"xenkeep doctor: summary":            doctorSummary{},
	"xenkeep doctor: step":               stepLine{},
	"xenkeep doctor: selftest":           selfTestLine{},
	"xenkeep stats: stats":               statsLine{},
	"xenkeep version: version":           versionLine{},
	"xenkeep sim":                        xapisim.Ready{},
	"xenkeep repair index: repair_index": repairIndexLine{},
	"xenkeep repair packs: repair_packs": repairPacksLine{},
	"xenkeep repair snapshots: lost":     lostLine{},
	"xenkeep repair snapshots: summary":  repairSnapshotsLine{},

	"xenkeep key revocations: revocation":  revocationLine{},
	"xenkeep key objects: object":          keyObjectLine{},
	"xenkeep key group list: group":        groupLine{},
	"xenkeep snapshots recover: recovered": recoveredLine{},

	"xenkeep export: exported": exchange.Exported{},
	"xenkeep verify: finding":  verifyFinding{},
	"xenkeep verify: summary":  verifySummary{},
	"xenkeep diff: range":      browse.ChangedRange{},
	"xenkeep diff: diff":       browse.Changes{},

	"xenkeep pool vms: vm":                         poolsnap.VMRow{},
	"xenkeep pool srs: sr":                         poolsnap.SRRow{},
	"xenkeep pool hosts: host":                     poolsnap.HostRow{},
	"xenkeep pool templates: template":             poolsnap.TemplateRow{},
	"xenkeep pool snapshot create: created":        poolsnap.Created{},
	"xenkeep pool snapshot list: vm_snapshot":      poolsnap.SnapshotRow{},
	"xenkeep pool snapshot show: vm_snapshot":      poolsnap.SnapshotDetail{},
	"xenkeep pool snapshot revert: revert_plan":    poolsnap.RevertPlan{},
	"xenkeep pool snapshot revert: reverted":       poolsnap.Reverted{},
	"xenkeep pool snapshot delete: deleted":        deletedLine{},
	"xenkeep pool snapshot copy: template":         poolsnap.Made{},
	"xenkeep pool snapshot export: exported_vm":    poolsnap.Exported{},
	"xenkeep pool schedule list: schedule":         poolsnap.Schedule{},
	"xenkeep pool schedule assign: assigned":       poolsnap.Assigned{},
	"xenkeep pool snapshot run: pool_snapshot_run": poolsnap.JobRun{},
	"xenkeep pool import: imported":                poolsnap.Imported{},
}

func TestReferenceJSON(t *testing.T) {
	sections := jsonSections(t, readReference(t))
	var names, documented []string
	for name := range sections {
		documented = append(documented, name)
	}
	for name, v := range lineTypes {
		names = append(names, name)
		var want, got []string
		fields(reflect.TypeOf(v), "", func(path string) { want = append(want, path) })
		for path := range sections[name].rows {
			if path != "field" {
				got = append(got, path)
			}
		}
		compare(t, name, got, want)
	}
	compare(t, "lines", documented, names)
}

// fields calls fn for each field of the JSON form of t: "snapshots[].id". A
// field hides fields of the same name that are embedded deeper, as in encoding/json.
func fields(t reflect.Type, prefix string, fn func(string)) {
	seen := make(map[string]bool)
	level := []reflect.Type{t}
	for len(level) > 0 {
		var deeper []reflect.Type
		for _, t := range level {
			for i := range t.NumField() {
				f := t.Field(i)
				if f.Anonymous {
					deeper = append(deeper, f.Type)
					continue
				}
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if !f.IsExported() || name == "" || name == "-" || seen[name] {
					continue
				}
				seen[name] = true
				inner, path := f.Type, prefix+name
				for inner.Kind() == reflect.Slice && inner.Elem().Kind() != reflect.Uint8 {
					inner, path = inner.Elem(), path+"[]"
				}
				if inner.Kind() == reflect.Struct && inner.String() != "time.Time" {
					fields(inner, path+".", fn)
				} else {
					fn(path)
				}
			}
		}
		level = deeper
	}
}

// Errors have the documented exit codes.
func TestExitCodes(t *testing.T) {
	for code := range exitMeanings {
		if code != exitOK && exitMeanings[code] == "" {
			t.Errorf("exit code %d means nothing", code)
		}
	}
	for _, c := range exitCases {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}
