// Package config reads the configuration of nightly jobs: xenkeep's own TOML, and the
// config files of VmBackup (NAUbackup), which become the same values. It reads files
// and reports their faults; it uses neither pool nor repository.
package config

import (
	"fmt"
	"time"

	"xenkeep/repo/retention"
)

// Config is a config file.
type Config struct {
	Repository Repository      `toml:"repository"`
	Pools      map[string]Pool `toml:"pools"`
	Jobs       map[string]*Job `toml:"jobs"`
	// Notify applies to jobs without notifications of their own.
	Notify Notify `toml:"notify"`
	Log    Log    `toml:"log"`
}

// Repository is the location of the repository and the secret that opens it.
type Repository struct {
	Location string `toml:"location"`
	Password Secret `toml:"password"`
	KeyFile  string `toml:"key-file"`
	CacheDir string `toml:"cache-dir"`
}

// Pool is a pool: its address, user, and how its hosts are authenticated.
type Pool struct {
	URL          string   `toml:"url"`
	User         string   `toml:"user"`
	Password     Secret   `toml:"password"`
	Fingerprints []string `toml:"fingerprints"`
	CAFile       string   `toml:"ca-file"`
	Insecure     bool     `toml:"insecure"`
}

// Job is a job, from the table [jobs.NAME].
type Job struct {
	Name string `toml:"-"`

	// Type is Backup, which is the default, or PoolSnapshot: a job that takes VM
	// snapshots on the pool and does not use the repository.
	Type Type `toml:"type"`
	// Schedule is the time when a job of type PoolSnapshot is due, as a cron
	// expression in local time.
	Schedule string `toml:"schedule"`

	Pool    string    `toml:"pool"`
	Select  Selection `toml:"select"`
	Exclude Exclusion `toml:"exclude"`
	// Rules change settings for some VMs. If several rules for a VM contain the same
	// setting, the last one applies.
	Rules []Rule `toml:"rules"`

	Snapshot        []Kind      `toml:"snapshot"` // in the order in which they are tried
	Transport       string      `toml:"transport"`
	NBDConnections  int         `toml:"nbd-connections"`
	VerifyCBT       *bool       `toml:"verify-cbt"`
	KeepBase        string      `toml:"keep-base"`
	SkipUnsupported bool        `toml:"skip-unsupported"`
	RawOffline      bool        `toml:"raw-offline"`
	UnplugUSB       bool        `toml:"unplug-usb"`
	AllowShrink     *int        `toml:"allow-shrink"` // percent; 20
	Compression     string      `toml:"compression"`
	Tags            []string    `toml:"tags"`
	Keep            Keep        `toml:"keep"`
	Grace           *Grace      `toml:"grace"`
	ForgetFirst     bool        `toml:"forget-first"` // VmBackup's pre_clean
	Prune           Every       `toml:"prune"`
	MaxRepack       Size        `toml:"max-repack"`
	Check           Check       `toml:"check"`
	Concurrency     Concurrency `toml:"concurrency"`
	Limits          Limits      `toml:"limits"`
	Window          Window      `toml:"window"`
	Hooks           Hooks       `toml:"hooks"`
	PoolMetadata    bool        `toml:"pool-metadata"`
	Retries         *int        `toml:"retries"` // of a VM that failed, after all others; 1
	Notify          *Notify     `toml:"notify"`
	ReportFile      string      `toml:"report-file"`
	MetricsFile     string      `toml:"metrics-file"`
	StatusLog       string      `toml:"status-log"`

	// VmBackup is set if the job was read from a config of VmBackup, which has its own
	// rules for names that match nothing.
	VmBackup *VmBackup `toml:"-"`
}

// Type is the type of a job.
type Type string

// The types of jobs.
const (
	Backup       Type = "backup"
	PoolSnapshot Type = "pool-snapshot"
)

// Kind is a way of taking a VM snapshot.
type Kind string

// The kinds of VM snapshots.
const (
	Regular    Kind = "regular"    // crash-consistent
	Quiesced   Kind = "quiesced"   // with the participation of the guest's applications (VSS)
	Checkpoint Kind = "checkpoint" // with memory
	Offline    Kind = "offline"    // after a clean shutdown; the VM is started afterwards
)

// Selection selects VMs: those in one of the first lists, if all of the last lists
// permit them. Without any of the first lists, or with All, all VMs of the pool are
// selected.
type Selection struct {
	All      bool     `toml:"all"`
	Names    []string `toml:"names"`
	UUIDs    []string `toml:"uuids"`
	Patterns []string `toml:"patterns"` // matched at the beginning of a name
	Tags     []string `toml:"tags"`

	PowerState []string `toml:"power-state"`
	Hosts      []string `toml:"hosts"`
	SRs        []string `toml:"srs"`
}

// Exclusion lists what a Selection does not include.
type Exclusion struct {
	Names    []string `toml:"names"`
	UUIDs    []string `toml:"uuids"`
	Patterns []string `toml:"patterns"`
	Tags     []string `toml:"tags"`

	PowerState []string `toml:"power-state"`
	Hosts      []string `toml:"hosts"`
	SRs        []string `toml:"srs"` // VMs with a disk on one of them

	// Disks are VDI UUIDs, names of disks, or "VM:DEVICE".
	Disks        []string `toml:"disks"`
	DiskPatterns []string `toml:"disk-patterns"` // matched at the beginning of a disk's name
	// IgnoreMarks also saves objects with [NOBAK] in their name or with the tag
	// xo:no-bak.
	IgnoreMarks bool `toml:"ignore-marks"`
}

// Rule holds settings for the VMs that one of its lists names.
type Rule struct {
	Names    []string `toml:"names"`
	UUIDs    []string `toml:"uuids"`
	Patterns []string `toml:"patterns"`
	Tags     []string `toml:"tags"`

	Priority *int   `toml:"priority"` // higher first; 0
	Disks    string `toml:"disks"`    // "all" or "first"
	Snapshot []Kind `toml:"snapshot"`
	Keep     *Keep  `toml:"keep"`
}

// Keep is a policy of retention.
type Keep struct {
	Last    Count  `toml:"last"`
	Hourly  Count  `toml:"hourly"`
	Daily   Count  `toml:"daily"`
	Weekly  Count  `toml:"weekly"`
	Monthly Count  `toml:"monthly"`
	Yearly  Count  `toml:"yearly"`
	Within  Period `toml:"within"`
}

// Policy returns k as a retention policy.
func (k Keep) Policy() retention.Policy {
	return retention.Policy{
		Last: int(k.Last), Hourly: int(k.Hourly), Daily: int(k.Daily), Weekly: int(k.Weekly), Monthly: int(k.Monthly), Yearly: int(k.Yearly),
		Within: retention.Period(k.Within),
	}
}

// Check controls the check of the repository after a run.
type Check struct {
	Every  Every `toml:"every"`  // default: daily if there is a budget
	Budget Size  `toml:"budget"` // bytes of packs to read each time; 0 reads none
}

// Concurrency limits the number of concurrent operations; 0 is the program's default.
type Concurrency struct {
	VMs     int `toml:"vms"`
	Disks   int `toml:"disks"`
	PerHost int `toml:"per-host"`
	PerSR   int `toml:"per-sr"`
}

// Limits limits the rates, in bytes per second: "50M", or "20M@08:00-18:00,200M": see
// docs/reference/backup.md, --limit-read.
type Limits struct {
	Read  string `toml:"read"`
	Write string `toml:"write"`
}

// Window limits the time in which VMs are begun.
type Window struct {
	StopAfter Until `toml:"stop-after"`
}

// Hooks are shell commands before and after a job and each VM.
type Hooks struct {
	Before   string   `toml:"before"`
	After    string   `toml:"after"`
	VMBefore string   `toml:"vm-before"`
	VMAfter  string   `toml:"vm-after"`
	TimeOut  Duration `toml:"time-out"` // of each hook; 10 minutes
}

// Notify selects the notifications of a run.
type Notify struct {
	Mail    *Mail    `toml:"mail"`
	Webhook *Webhook `toml:"webhook"`
	Ping    *Ping    `toml:"ping"`
}

// When selects the runs of which a message is sent.
type When string

// The values of When.
const (
	Always    When = "always"
	OnFailure When = "failure" // whenever a run is not ok
)

// Mail configures reports by e-mail.
type Mail struct {
	Server   string   `toml:"server"` // host:port
	TLS      string   `toml:"tls"`    // "starttls" (required), "tls", "none"
	User     string   `toml:"user"`
	Password Secret   `toml:"password"`
	CAFile   string   `toml:"ca-file"`
	From     string   `toml:"from"`
	To       []string `toml:"to"`
	When     When     `toml:"when"`
	Attempts int      `toml:"attempts"` // 3
}

// Webhook is a URL to which the report is sent as JSON, by POST.
type Webhook struct {
	URL      string   `toml:"url"`
	Token    Secret   `toml:"token"` // sent as a bearer token
	When     When     `toml:"when"`
	TimeOut  Duration `toml:"time-out"`
	Attempts int      `toml:"attempts"`
}

// Ping holds URLs that are requested at the start and end of a run, so that a
// monitoring service notices a missing run.
type Ping struct {
	Start    string   `toml:"start"`
	Success  string   `toml:"success"`
	Failure  string   `toml:"failure"`
	TimeOut  Duration `toml:"time-out"`
	Attempts int      `toml:"attempts"`
}

// Log configures the log of runs.
type Log struct {
	File   string `toml:"file"`   // appended to; "" is stderr
	Format string `toml:"format"` // "text" or "json"
}

// Job returns the job with a name.
func (c *Config) Job(name string) (*Job, error) {
	if j := c.Jobs[name]; j != nil {
		return j, nil
	}
	names := sorted(c.Jobs)
	if near := nearest(name, names); near != "" {
		return nil, fmt.Errorf("no job %q: did you mean %q?", name, near)
	}
	return nil, fmt.Errorf("no job %q: there are %v", name, names)
}

// PoolOf returns the pool of a job: the one that it names, or the only one.
func (c *Config) PoolOf(j *Job) (*Pool, error) {
	if j.Pool == "" && len(c.Pools) == 1 {
		for _, p := range c.Pools {
			return &p, nil
		}
	}
	p, ok := c.Pools[j.Pool]
	if !ok {
		return nil, fmt.Errorf("job %q: no pool %q: there are %v", j.Name, j.Pool, sorted(c.Pools))
	}
	return &p, nil
}

// PoolNames returns the names of the pools, sorted.
func (c *Config) PoolNames() []string { return sorted(c.Pools) }

// JobNames returns the names of the jobs, sorted.
func (c *Config) JobNames() []string { return sorted(c.Jobs) }

// JobsOf returns the jobs for a pool, sorted by name.
func (c *Config) JobsOf(pool string) []*Job {
	var list []*Job
	for _, name := range sorted(c.Jobs) {
		if j := c.Jobs[name]; j.Type != PoolSnapshot && (j.Pool == pool || j.Pool == "") {
			list = append(list, j)
		}
	}
	return list
}

// Notifications returns the notifications of a job: its own, or those of the file.
func (c *Config) Notifications(j *Job) Notify {
	if j.Notify != nil {
		return *j.Notify
	}
	return c.Notify
}

// Duration is a time span: "90s", "10m", "26h".
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(p []byte) error {
	v, err := time.ParseDuration(string(p))
	if err != nil || v < 0 {
		return fmt.Errorf("duration %q: want numbers with h, m or s, such as 2h30m", p)
	}
	*d = Duration(v)
	return nil
}

// Or returns d, or v if d is not set.
func (d Duration) Or(v time.Duration) time.Duration {
	if d > 0 {
		return time.Duration(d)
	}
	return v
}

// SecretVariables returns the names of the environment variables from which the
// config takes secrets.
func (c *Config) SecretVariables() []string {
	var names []string
	add := func(s Secret) {
		if s.Env != "" {
			names = append(names, s.Env)
		}
	}
	notify := func(n *Notify) {
		if n.Mail != nil {
			add(n.Mail.Password)
		}
		if n.Webhook != nil {
			add(n.Webhook.Token)
		}
	}
	add(c.Repository.Password)
	for _, p := range c.Pools {
		add(p.Password)
	}
	notify(&c.Notify)
	for _, j := range c.Jobs {
		if j.Notify != nil {
			notify(j.Notify)
		}
	}
	return names
}
