package config

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/limit"
	"xenkeep/job/pyre"
)

func oneOf[T ~string](bad *Problems, key string, v T, words ...T) {
	if v != "" && !slices.Contains(words, v) {
		bad.add(0, "%s: %q is none of %v", key, v, words)
	}
}

// check adds the faults of a secret to bad. It stores the key for errors of Read.
func (s *Secret) check(bad *Problems, key string) {
	s.key = key
	if err := s.validate(); err != nil {
		bad.add(0, "%s: %v", key, err)
	}
}

// check checks the rules that the types of TOML cannot express.
func (c *Config) check(bad *Problems) {
	backups := len(c.Jobs) == 0
	for _, j := range c.Jobs {
		backups = backups || j.Type != PoolSnapshot
	}
	if c.Repository.Location == "" && backups {
		bad.add(0, "repository.location: which repository?")
	}
	if err := object.CheckLocation(c.Repository.Location); err != nil {
		bad.add(0, "repository.location: %v: %s", err, object.HintOf(err))
	}
	if s3, ok := strings.CutPrefix(c.Repository.Location, "s3:"); ok && !strings.HasPrefix(s3, "//") {
		link(bad, "repository.location", s3)
	}
	c.Repository.Password.check(bad, "repository.password")
	if !c.Repository.Password.IsZero() && c.Repository.KeyFile != "" {
		bad.add(0, "repository: a password or a key-file, not both")
	}
	if len(c.Pools) == 0 {
		bad.add(0, "pools: there is none: add [pools.NAME] with its url")
	}
	for _, name := range sorted(c.Pools) {
		p := c.Pools[name]
		p.check(bad, "pools."+name)
		c.Pools[name] = p // with the keys of its secrets
	}
	if len(c.Jobs) == 0 {
		bad.add(0, "jobs: there is none: add [jobs.NAME]")
	}
	c.Notify.check(bad, "notify")
	oneOf(bad, "log.format", c.Log.Format, "text", "json")
	for _, name := range sorted(c.Jobs) {
		j := c.Jobs[name]
		j.check(bad, "jobs."+name)
		switch _, known := c.Pools[j.Pool]; {
		case known || len(c.Pools) == 0 || j.Pool == "" && len(c.Pools) == 1:
		case j.Pool == "":
			bad.add(0, "jobs.%s.pool: which of %v?", name, sorted(c.Pools))
		default:
			text := fmt.Sprintf("no pool %q", j.Pool)
			if near := nearest(j.Pool, sorted(c.Pools)); near != "" {
				bad.add(0, "jobs.%s.pool: %s; did you mean %q?", name, text, near)
			} else {
				bad.add(0, "jobs.%s.pool: %s: there are %v", name, text, sorted(c.Pools))
			}
		}
	}
}

func (p *Pool) check(bad *Problems, key string) {
	// A login accepts HOST, HOST:PORT, or these after http:// or https://.
	text := p.URL
	if !strings.Contains(text, "://") {
		if net.ParseIP(text) != nil && strings.Contains(text, ":") {
			text = "[" + text + "]"
		}
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case p.URL == "":
		bad.add(0, "%s.url: which pool?", key)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || strings.ContainsAny(p.URL, " \t"):
		bad.add(0, "%s.url: %q: want https://HOST or https://HOST:PORT", key, p.URL)
	}
	if err == nil && u.Scheme == "http" && !p.Insecure {
		bad.add(0, "%s.url: %q: plain HTTP would send the password in clear text: want https://, or insecure = true for a test pool", key, p.URL)
	}
	p.Password.check(bad, key+".password")
	for _, f := range p.Fingerprints {
		if i := strings.LastIndexByte(f, '='); i >= 0 { // "SHA256 Fingerprint=..." as openssl prints it
			f = f[i+1:]
		}
		clean := strings.TrimPrefix(strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(f)), "sha256")
		if b, err := hex.DecodeString(clean); err != nil || len(b) != 32 {
			bad.add(0, "%s.fingerprints: %q: want a SHA-256 sum as 64 hex digits", key, f)
		}
	}
	if p.Insecure && (len(p.Fingerprints) > 0 || p.CAFile != "") {
		bad.add(0, "%s.insecure: true makes fingerprints and ca-file void: leave one out", key)
	}
}

// words refuses empty entries of lists: they would match nothing, or everything.
func words(bad *Problems, key string, list []string) {
	for _, w := range list {
		if strings.TrimSpace(w) == "" || strings.ContainsAny(w, "\n\x00") {
			bad.add(0, "%s: %q is no name", key, w)
		}
	}
}

func uuids(bad *Problems, key string, list []string) {
	for _, u := range list {
		if b, err := hex.DecodeString(strings.ReplaceAll(u, "-", "")); err != nil || len(b) != 16 || len(u) != 36 {
			bad.add(0, "%s: %q is no UUID", key, u)
		}
	}
}

// span refuses negative times, and times without a unit.
func span(bad *Problems, key string, d Duration) {
	if d < 0 || d > 0 && time.Duration(d) < time.Millisecond {
		bad.add(0, "%s: %d: want numbers with h, m or s, such as 10m", key, d)
	}
}

func amount(bad *Problems, key string, n Size) {
	if n < 0 {
		bad.add(0, "%s: %d is less than nothing", key, n)
	}
}

func between(bad *Problems, key string, n, least, most int) {
	if n < least || n > most {
		bad.add(0, "%s: %d: want %d to %d", key, n, least, most)
	}
}

func patterns(bad *Problems, key string, list []string) {
	for _, p := range list {
		if _, err := pyre.Compile(p); err != nil {
			bad.add(0, "%s: %v", key, err)
		}
	}
}

func kinds(bad *Problems, key string, list []Kind) {
	for i, k := range list {
		if k == "" {
			bad.add(0, "%s: an empty word", key)
		}
		oneOf(bad, key, k, Regular, Quiesced, Checkpoint, Offline)
		if slices.Contains(list[:i], k) {
			bad.add(0, "%s: %q is listed twice", key, k)
		}
	}
}

func states(bad *Problems, key string, list []string) {
	for _, s := range list {
		oneOf(bad, key, s, "running", "halted", "paused", "suspended")
	}
}

func (k Keep) check(bad *Problems, key string) {
	if err := k.Policy().Validate(); err != nil {
		bad.add(0, "%s: %v", key, err)
	}
}

func (s *Selection) check(bad *Problems, key string) {
	words(bad, key+".names", s.Names)
	uuids(bad, key+".uuids", s.UUIDs)
	patterns(bad, key+".patterns", s.Patterns)
	words(bad, key+".tags", s.Tags)
	states(bad, key+".power-state", s.PowerState)
	words(bad, key+".hosts", s.Hosts)
	words(bad, key+".srs", s.SRs)
}

func (e *Exclusion) check(bad *Problems, key string) {
	s := Selection{Names: e.Names, UUIDs: e.UUIDs, Patterns: e.Patterns, Tags: e.Tags, PowerState: e.PowerState, Hosts: e.Hosts, SRs: e.SRs}
	s.check(bad, key)
	words(bad, key+".disks", e.Disks)
	patterns(bad, key+".disk-patterns", e.DiskPatterns)
}

func (h *Hooks) check(bad *Problems, key string) {
	for what, command := range map[string]string{"before": h.Before, "after": h.After, "vm-before": h.VMBefore, "vm-after": h.VMAfter} {
		if command != "" && strings.TrimSpace(command) == "" || strings.Contains(command, "\x00") {
			bad.add(0, "%s.%s: %q is no command", key, what, command)
		}
	}
	span(bad, key+".time-out", h.TimeOut)
}

func (l *Limits) check(bad *Problems, key string) {
	for what, text := range map[string]string{"read": l.Read, "write": l.Write} {
		if text == "" {
			continue
		}
		if _, err := limit.Parse(text); err != nil {
			bad.add(0, "%s.%s: %v", key, what, err)
		}
	}
}

// maxAtOnce is more VMs or disks than any pool can serve concurrently.
const maxAtOnce = 1000

func (j *Job) check(bad *Problems, key string) {
	if strings.ContainsAny(j.Name, "/\n\"") || j.Name == "" {
		bad.add(0, "%s: a job's name has no quotes, slashes or ends of lines", key)
	}
	j.Select.check(bad, key+".select")
	j.Exclude.check(bad, key+".exclude")
	s := j.Select
	if j.VmBackup == nil && !s.All && len(s.Names)+len(s.UUIDs)+len(s.Patterns)+len(s.Tags)+len(s.PowerState)+len(s.Hosts)+len(s.SRs) == 0 {
		bad.add(0, "%s.select: which VMs? name some, or say all = true", key)
	}
	kinds(bad, key+".snapshot", j.Snapshot)
	for i, r := range j.Rules {
		at := fmt.Sprintf("%s.rules[%d]", key, i)
		words(bad, at+".names", r.Names)
		uuids(bad, at+".uuids", r.UUIDs)
		patterns(bad, at+".patterns", r.Patterns)
		words(bad, at+".tags", r.Tags)
		kinds(bad, at+".snapshot", r.Snapshot)
		oneOf(bad, at+".disks", r.Disks, "all", "first")
		if r.Keep != nil {
			r.Keep.check(bad, at+".keep")
		}
		if len(r.Names)+len(r.UUIDs)+len(r.Patterns)+len(r.Tags) == 0 {
			bad.add(0, "%s: for which VMs? give names, uuids, patterns or tags", at)
		}
	}
	oneOf(bad, key+".type", j.Type, Backup, PoolSnapshot)
	if j.Type == PoolSnapshot {
		j.checkPoolSnapshot(bad, key)
	} else if j.Schedule != "" {
		bad.add(0, "%s.schedule: only jobs of type %q have one; call backups from cron or a timer", key, PoolSnapshot)
	}
	oneOf(bad, key+".transport", j.Transport, "auto", "nbd", "vhd")
	oneOf(bad, key+".keep-base", j.KeepBase, "auto", "cbt", "snapshot", "none")
	if j.Compression != "" {
		if _, err := seal.ParseLevel(j.Compression); err != nil {
			bad.add(0, "%s.compression: %v", key, err)
		}
	}
	oneOf(bad, key+".prune", j.Prune, Never, Run, Daily, Weekly, Monthly)
	oneOf(bad, key+".check.every", j.Check.Every, Never, Run, Daily, Weekly, Monthly)
	j.Keep.check(bad, key+".keep")
	between(bad, key+".nbd-connections", j.NBDConnections, 0, 16) // the maximum of a host
	between(bad, key+".concurrency.vms", j.Concurrency.VMs, 0, maxAtOnce)
	between(bad, key+".concurrency.disks", j.Concurrency.Disks, 0, maxAtOnce)
	between(bad, key+".concurrency.per-host", j.Concurrency.PerHost, 0, maxAtOnce)
	between(bad, key+".concurrency.per-sr", j.Concurrency.PerSR, 0, maxAtOnce)
	if j.Retries != nil {
		between(bad, key+".retries", *j.Retries, 0, 10)
	}
	if j.AllowShrink != nil {
		between(bad, key+".allow-shrink", *j.AllowShrink, 0, 100)
	}
	amount(bad, key+".max-repack", j.MaxRepack)
	amount(bad, key+".check.budget", j.Check.Budget)
	words(bad, key+".tags", j.Tags)
	j.Limits.check(bad, key+".limits")
	j.Hooks.check(bad, key+".hooks")
	if j.Notify != nil {
		j.Notify.check(bad, key+".notify")
	}
}

// link refuses a text that is no URL of a web server.
func link(bad *Problems, key, text string) {
	u, err := url.Parse(text)
	if text != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.ContainsAny(text, " \t")) {
		bad.add(0, "%s: %q is no address of the web", key, text)
	}
}

// server refuses a text that is no HOST or HOST:PORT.
func server(bad *Problems, key, text string) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, "25" // the default depends on tls
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" || strings.ContainsAny(host, " \t/@") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		bad.add(0, "%s: %q: want HOST or HOST:PORT", key, text)
	}
}

// maxAttempts is the maximum of attempts at a notification: the pauses between them
// double.
const maxAttempts = 10

func (n Notify) check(bad *Problems, key string) {
	if m := n.Mail; m != nil {
		at := key + ".mail"
		if m.Server == "" {
			bad.add(0, "%s.server: which mail server? HOST:PORT", at)
		} else {
			server(bad, at+".server", m.Server)
		}
		between(bad, at+".attempts", m.Attempts, 0, maxAttempts)
		oneOf(bad, at+".tls", m.TLS, "starttls", "tls", "none")
		oneOf(bad, at+".when", m.When, Always, OnFailure)
		m.Password.check(bad, at+".password")
		if (m.User == "") != m.Password.IsZero() {
			bad.add(0, "%s: user and password go together", at)
		}
		if len(m.To) == 0 {
			bad.add(0, "%s.to: to whom?", at)
		}
		for i, a := range append([]string{m.From}, m.To...) {
			what := "to"
			if i == 0 {
				what = "from"
			}
			if _, err := mail.ParseAddress(a); err != nil {
				bad.add(0, "%s.%s: address %q: %v", at, what, a, strings.TrimPrefix(err.Error(), "mail: "))
			}
		}
	}
	if w := n.Webhook; w != nil {
		if w.URL == "" {
			bad.add(0, "%s.webhook.url: where to?", key)
		}
		link(bad, key+".webhook.url", w.URL)
		oneOf(bad, key+".webhook.when", w.When, Always, OnFailure)
		w.Token.check(bad, key+".webhook.token")
		span(bad, key+".webhook.time-out", w.TimeOut)
		between(bad, key+".webhook.attempts", w.Attempts, 0, maxAttempts)
	}
	if p := n.Ping; p != nil {
		if p.Start+p.Success+p.Failure == "" {
			bad.add(0, "%s.ping: give start, success or failure", key)
		}
		span(bad, key+".ping.time-out", p.TimeOut)
		between(bad, key+".ping.attempts", p.Attempts, 0, maxAttempts)
		link(bad, key+".ping.start", p.Start)
		link(bad, key+".ping.success", p.Success)
		link(bad, key+".ping.failure", p.Failure)
	}
}
