package config

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"xenkeep/job/pyre"
)

// Defaults of VmBackup 3.25 (its README).
const (
	vmBackupMax = 4
	vmBackupDir = "/snapshots/BACKUPS"
)

// VmBackup is a config file of VmBackup 3.25. Its README and the behaviour of its code
// define the meaning of each line.
type VmBackup struct {
	File       string
	PoolDB     bool
	MaxBackups int
	BackupDir  string
	StatusLog  string
	Compress   bool
	PreClean   bool
	Exclude    []VMLine // excludes come first, wherever they are in the file
	Export     []VMLine // vm-export and vdi-export
	// Notes lists settings that are accepted and have no effect here.
	Notes []Problem
}

// VMLine is a line that selects or excludes VMs.
type VMLine struct {
	Line    int
	Key     string        // "exclude", "vm-export", "vdi-export"
	Name    string        // in its original form, without its number
	Keep    int           // 0 if the line has none: then max_backups applies
	Pattern *pyre.Pattern // nil for a simple name
}

// Simple reports whether the line names one VM.
func (l *VMLine) Simple() bool { return l.Pattern == nil }

// Matches reports whether the line matches a VM's name.
func (l *VMLine) Matches(name string) (bool, error) {
	if l.Pattern == nil {
		return l.Name == name, nil
	}
	return l.Pattern.Match(name)
}

// VDI reports whether only the first disk is saved.
func (l *VMLine) VDI() bool { return l.Key == "vdi-export" }

func (l *VMLine) String() string {
	s := l.Key + "=" + l.Name
	if l.Keep > 0 {
		s += ":" + strconv.Itoa(l.Keep)
	}
	return s
}

// simpleName reports whether s is a name and not a pattern: a name has only letters,
// digits, spaces, hyphens and underscores.
func simpleName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \t-_") == ""
}

// VmBackupParams are the parameters of VmBackup's command line after the config file:
// compress=True, pre_clean=True, ignore_extra_keys=True.
type VmBackupParams struct{ Compress, PreClean, IgnoreExtraKeys bool }

// ParseVmBackupParams parses them, in upper or lower case.
func ParseVmBackupParams(args []string) (VmBackupParams, error) {
	var p VmBackupParams
	for _, a := range args {
		name, value, ok := strings.Cut(strings.ToLower(strings.TrimSpace(a)), "=")
		if !ok || value != "true" && value != "false" {
			return p, fmt.Errorf("parameter %q: want compress=True, pre_clean=True or ignore_extra_keys=True", a)
		}
		switch yes := value == "true"; name {
		case "compress":
			p.Compress = yes
		case "pre_clean":
			p.PreClean = yes
		case "ignore_extra_keys":
			p.IgnoreExtraKeys = yes
		default:
			return p, fmt.Errorf("parameter %q: VmBackup has compress, pre_clean and ignore_extra_keys", a)
		}
	}
	return p, nil
}

// LoadVmBackup reads a config file of VmBackup.
func LoadVmBackup(file string, params VmBackupParams) (*VmBackup, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return ParseVmBackup(file, text, params)
}

// ParseVmBackup parses the text of a config file of VmBackup.
func ParseVmBackup(file string, text []byte, params VmBackupParams) (*VmBackup, error) {
	v := &VmBackup{File: file, MaxBackups: vmBackupMax, BackupDir: vmBackupDir, Compress: params.Compress, PreClean: params.PreClean}
	bad := &Problems{File: file}
	if !utf8.Valid(text) {
		bad.add(0, "it is not UTF-8")
		return nil, bad
	}
	seen := make(map[string]int)
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			bad.add(n, "%q: want KEY=VALUE; a comment's # must be the first character of its line", strings.TrimSpace(line))
			continue
		}
		if strings.Contains(value, "=") {
			bad.add(n, "%q: more than one =, which VmBackup does not take", strings.TrimSpace(line))
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch key {
		case "exclude", "vm-export", "vdi-export":
			v.line(bad, n, key, value)
			continue
		}
		if at, twice := seen[key]; twice {
			bad.add(n, "%s is in line %d, too; VmBackup ends with an error there", key, at)
			continue
		}
		seen[key] = n
		v.value(bad, n, key, value, params)
	}
	if v.Compress {
		v.Notes = append(v.Notes, Problem{0, "compress=True has no effect: stored data are always compressed"})
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *VmBackup) value(bad *Problems, n int, key, value string, params VmBackupParams) {
	number := func(low, high int) int {
		i, err := strconv.Atoi(value)
		if err != nil || i < low || i > high {
			bad.add(n, "%s=%s: want a number of %d or more", key, value, low)
			if high == 1 {
				bad.List[len(bad.List)-1].Text = fmt.Sprintf("%s=%s: want 0 or 1", key, value)
			}
			return low
		}
		return i
	}
	switch key {
	case "pool_db_backup":
		v.PoolDB = number(0, 1) == 1
	case "max_backups":
		v.MaxBackups = number(1, 1<<30)
	case "backup_dir":
		v.BackupDir = value
	case "status_log":
		v.StatusLog = value
	case "vdi_export_format":
		if value != "raw" && value != "vhd" {
			bad.add(n, "vdi_export_format=%s: want raw or vhd", value)
			return
		}
		v.Notes = append(v.Notes, Problem{n, "vdi_export_format=" + value + " has no effect: a repository has one format, and restores write raw or VHD"})
	default:
		if params.IgnoreExtraKeys {
			v.Notes = append(v.Notes, Problem{n, "key " + key + " is ignored"})
			return
		}
		text := fmt.Sprintf("unexpected key %q", key)
		known := []string{"pool_db_backup", "max_backups", "backup_dir", "status_log", "vdi_export_format", "vm-export", "vdi-export", "exclude"}
		if near := nearest(key, known); near != "" {
			text += fmt.Sprintf("; did you mean %q?", near)
		}
		bad.add(n, "%s (ignore_extra_keys=True passes over such keys)", text)
	}
}

// line parses exclude, vm-export and vdi-export.
func (v *VmBackup) line(bad *Problems, n int, key, value string) {
	l := VMLine{Line: n, Key: key, Name: value}
	if value == "" && key != "vm-export" { // it matches nothing, not everything
		v.Notes = append(v.Notes, Problem{n, key + "= without a name has no effect"})
		return
	}
	if name, number, ok := strings.Cut(value, ":"); ok && key != "exclude" {
		if strings.Contains(number, ":") {
			bad.add(n, "%s=%s: more than one colon, which VmBackup does not take", key, value)
			return
		}
		keep, err := strconv.Atoi(strings.TrimSpace(number))
		if err != nil {
			bad.add(n, "%s=%s: %q is no number of backups; in VmBackup a name or pattern ends at its colon", key, value, number)
			return
		}
		l.Name, l.Keep = name, max(keep, 0)
	}
	if !simpleName(l.Name) {
		p, err := pyre.Compile(l.Name)
		if err != nil {
			bad.add(n, "%s=%s: invalid regex: %v", key, value, err)
			return
		}
		l.Pattern = p
	}
	if key == "exclude" {
		v.Exclude = append(v.Exclude, l)
		return
	}
	v.Export = append(v.Export, l)
}

// Repository returns the default location of backups: a folder next to VmBackup's.
func (v *VmBackup) Repository() string { return filepath.Join(v.BackupDir, "xenkeep") }

// Job returns the job that the file describes, with the file's name.
func (v *VmBackup) Job() *Job {
	base := filepath.Base(v.File)
	j := &Job{
		Name: strings.TrimSuffix(base, filepath.Ext(base)), Keep: Keep{Last: Count(v.MaxBackups)}, PoolMetadata: v.PoolDB,
		StatusLog: v.StatusLog, ForgetFirst: v.PreClean, VmBackup: v,
	}
	if v.PreClean {
		j.Prune, j.Grace = Run, new(Grace) // pre_clean frees space
	}
	return j
}

// Lines returns the selecting lines in the order of their precedence: patterns before
// simple names and vm-export before vdi-export. Of all lines that match a VM the last
// one applies.
func (v *VmBackup) Lines() []VMLine {
	var all []VMLine
	for _, vdi := range []bool{false, true} {
		for _, simple := range []bool{false, true} {
			for _, l := range v.Export {
				if l.VDI() == vdi && l.Simple() == simple {
					all = append(all, l)
				}
			}
		}
	}
	return all
}

// TOML returns an equivalent config in xenkeep's own format, with a pool to be filled
// in.
func (v *VmBackup) TOML() []byte {
	var b bytes.Buffer
	j := v.Job()
	fmt.Fprintf(&b, "# From %s, a config of VmBackup.\n", comment(v.File))
	for _, n := range v.Notes {
		if n.Line > 0 {
			fmt.Fprintf(&b, "# line %d: %s\n", n.Line, comment(n.Text))
		} else {
			fmt.Fprintf(&b, "# %s\n", comment(n.Text))
		}
	}
	fmt.Fprintf(&b, "\n[repository]\nlocation = %s\npassword = { file = \"/etc/xenkeep/repository-password\" }\n", quote(v.Repository()))
	b.WriteString("\n[pools.main]\nurl = \"https://POOL-MASTER\"   # any host of the pool\npassword = { file = \"/etc/xenkeep/pool-password\" }\n")
	b.WriteString("# as xenkeep doctor --pool shows it:\n# fingerprints = [\"...\"]\n")
	fmt.Fprintf(&b, "\n[jobs.%s]\npool = \"main\"\nkeep = { last = %d }\npool-metadata = %t\n", quote(j.Name), v.MaxBackups, v.PoolDB)
	if v.StatusLog != "" {
		fmt.Fprintf(&b, "status-log = %s\n", quote(v.StatusLog))
	}
	if v.PreClean {
		b.WriteString("forget-first = true\ngrace = \"0\"   # space is freed before the backup, as pre_clean does\nprune = \"always\"\n")
	} else {
		b.WriteString("prune = \"weekly\"   # frees the space of forgotten snapshots\n")
	}
	split := func(lines []VMLine) (names, patterns []string) {
		for _, l := range lines {
			if l.Simple() && !slices.Contains(names, l.Name) {
				names = append(names, l.Name)
			} else if !l.Simple() && !slices.Contains(patterns, l.Name) {
				patterns = append(patterns, l.Name)
			}
		}
		return names, patterns
	}
	write := func(head string, names, patterns []string) {
		fmt.Fprintf(&b, "\n[%s]\n", head)
		if len(names) > 0 {
			fmt.Fprintf(&b, "names = %s\n", quoteAll(names))
		}
		if len(patterns) > 0 {
			fmt.Fprintf(&b, "patterns = %s\n", quoteAll(patterns))
		}
	}
	names, pats := split(v.Export)
	write("jobs."+quote(j.Name)+".select", names, pats)
	if len(v.Exclude) > 0 {
		names, pats := split(v.Exclude)
		write("jobs."+quote(j.Name)+".exclude", names, pats)
	}
	if len(v.Export) > 0 {
		b.WriteString("\n# Of the rules that apply to a VM the last one decides.\n")
	}
	for _, l := range v.Lines() {
		keep := l.Keep
		if keep == 0 {
			keep = v.MaxBackups
		}
		disks := "all"
		if l.VDI() {
			disks = "first"
		}
		fmt.Fprintf(&b, "\n[[jobs.%s.rules]]   # %s\n", quote(j.Name), comment(l.String()))
		if l.Simple() {
			fmt.Fprintf(&b, "names = %s\n", quoteAll([]string{l.Name}))
		} else {
			fmt.Fprintf(&b, "patterns = %s\n", quoteAll([]string{l.Name}))
		}
		fmt.Fprintf(&b, "disks = %q\nkeep = { last = %d }\n", disks, keep)
	}
	return b.Bytes()
}

// comment returns a text in a form that is valid after a # in TOML.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// quote returns a string as a TOML string, literal if possible.
func quote(s string) string {
	control := strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
	if !control && !strings.Contains(s, "'") && strings.ContainsAny(s, `\"`) {
		return "'" + s + "'"
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func quoteAll(list []string) string {
	var q []string
	for _, s := range list {
		q = append(q, quote(s))
	}
	return "[" + strings.Join(q, ", ") + "]"
}

// Unobscure decodes a file of VmBackup's create-password-file: base64.
func Unobscure(p []byte) ([]byte, error) {
	plain, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(p)), ""))
	if err != nil {
		return nil, errors.New("it is no obscured password of VmBackup (base64)")
	}
	return plain, nil
}
