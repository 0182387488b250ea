package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"xenkeep/job"
	"xenkeep/job/config"
	"xenkeep/job/nightly"
	"xenkeep/job/report"
	"xenkeep/repo"
	"xenkeep/xapi"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// jobFileFlags select the config file that a job is read from.
type jobFileFlags struct {
	config, vmBackup, vmBackupPassword string

	flags *pflag.FlagSet
}

func (f *jobFileFlags) add(s *pflag.FlagSet) {
	f.flags = s
	s.StringVar(&f.config, "config", "", "take the job from this config `file`; see xenkeep config example")
	s.StringVar(&f.vmBackup, "vmbackup-config", "", "take the job from this config `file` of VmBackup")
	s.StringVar(&f.vmBackupPassword, "vmbackup-password-file", "", "`file` with the pool's password as VmBackup's create-password-file wrote it")
}

// given reports whether the command line names a file.
func (f *jobFileFlags) given() bool {
	return f.vmBackup != "" || f.flags != nil && f.flags.Changed("config")
}

// find uses the config that foundConfig returns if the command line names none, and
// reports whether there is one.
func (f *jobFileFlags) find() bool {
	if !f.given() {
		f.config, _ = foundConfig(f.flags)
	}
	return f.given() || f.config != ""
}

// load reads the job; params are the parameters that VmBackup takes after its config
// file.
func (f *jobFileFlags) load(name string, params []string) (*config.Config, *config.Job, error) {
	if f.vmBackup != "" && f.flags != nil && !f.flags.Changed("config") {
		f.config = "" // of the environment
	}
	if f.config != "" && f.vmBackup != "" {
		return nil, nil, usagef("--config or --vmbackup-config, not both")
	}
	if f.vmBackup != "" {
		p, err := config.ParseVmBackupParams(params)
		if err != nil {
			return nil, nil, usagef("%w", err)
		}
		v, err := config.LoadVmBackup(f.vmBackup, p)
		if err != nil {
			return nil, nil, err
		}
		j := v.Job()
		j.Name = cmp.Or(name, j.Name)
		c := &config.Config{Repository: config.Repository{Location: v.Repository()}, Jobs: map[string]*config.Job{j.Name: j}}
		return c, j, nil
	}
	c, err := config.Load(f.config)
	if err != nil {
		return nil, nil, err
	}
	if name == "" {
		for only := range c.Jobs {
			name = only
		}
		if len(c.Jobs) > 1 {
			return nil, nil, usagef("which job of %s? It has %s: choose one with --job NAME, or xenkeep plan NAME", f.config, strings.Join(slices.Sorted(maps.Keys(c.Jobs)), ", "))
		}
	}
	j, err := c.Job(name)
	return c, j, err
}

// use sets flags that are not on the command line from the config, which overrides
// the environment.
func (f *jobFileFlags) use(cmd *cobra.Command, c *config.Config, p *config.Pool, r *repositoryFlags, pool *poolFlags) {
	given := cmd.Flags().Changed
	if location := r.location; f.vmBackup != "" && location != "" {
		r.use(given, c)
		r.location = location
	} else {
		r.use(given, c)
	}
	pool.flags = nil
	if f.vmBackupPassword != "" {
		pool.config = config.Secret{File: f.vmBackupPassword, Obscured: true}
		pool.passwordFile = ""
	}
	if p == nil {
		return
	}
	if named, ok := c.Pools[pool.url]; ok && given("pool") {
		pool.url = named.URL
	} else if p.URL != "" && !given("pool") {
		pool.url = p.URL
	}
	pool.use(given, p)
}

// night prepares a run of a job.
func (f *jobFileFlags) night(cmd *cobra.Command, name string, params []string, r *repositoryFlags, pool *poolFlags) (*nightly.Night, *config.Config, error) {
	c, j, err := f.load(name, params)
	if err != nil {
		return nil, nil, err
	}
	if j.Type == config.PoolSnapshot {
		return nil, nil, usagef("job %q takes snapshots on the pool, no backups: xenkeep pool snapshot run --job %s --config %s", j.Name, j.Name, f.config)
	}
	var p *config.Pool
	if f.config != "" {
		if p, err = c.PoolOf(j); err != nil {
			return nil, nil, err
		}
	}
	f.use(cmd, c, p, r, pool)
	if err := errors.Join(r.check(), pool.check()); err != nil {
		return nil, nil, err
	}
	n := &nightly.Night{
		Job: j, Notify: c.Notifications(j), ConfigFile: cmp.Or(f.config, f.vmBackup), Location: r.location, PoolName: pool.url, LogFile: c.Log.File,
		Secrets:  c.SecretVariables(),
		StateDir: filepath.Join(r.cache(), "jobs"), Machine: machineName(), Version: versionText(),
	}
	n.Open, n.Dial = nightDoors(cmd.ErrOrStderr(), r, pool)
	return n, c, nil
}

// nightDoors open repository and pool when a run gets to that.
func nightDoors(stderr io.Writer, r *repositoryFlags, pool *poolFlags) (func(context.Context) (*repo.Repository, error), func(context.Context) (*xapi.Client, error)) {
	open := func(ctx context.Context) (*repo.Repository, error) {
		r, err := r.open(ctx, stderr)
		if err == nil {
			tellProblems(stderr, r.Problems())
		}
		return r, err
	}
	return open, func(ctx context.Context) (*xapi.Client, error) { return pool.dial(ctx, stderr) }
}

func machineName() string {
	if machine, err := os.Hostname(); err == nil {
		return machine
	}
	return "unknown"
}

// logFile writes to a log file. After the first failed write, for example on a full
// disk, it reports the failure to stderr once and keeps the error.
type logFile struct {
	w, stderr io.Writer
	failed    error
}

// Write is called under the lock of the log's handler.
func (l *logFile) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err != nil && l.failed == nil {
		l.failed = err
		fmt.Fprintf(l.stderr, "xenkeep: warning: log: %s\n", oneLine(err.Error()))
	}
	return n, err
}

// logger returns the log that the config defines. If its file cannot be written, the
// job must still run: the log is written to stderr then, and logger also returns the
// error.
func logger(c *config.Log, stderr io.Writer) (*slog.Logger, func() error, error) {
	w, end := stderr, func() error { return nil }
	var failed error
	if c.File != "" {
		f, err := os.OpenFile(c.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			failed = fmt.Errorf("log: %w", err)
		} else {
			l := &logFile{w: f, stderr: stderr}
			w, end = l, func() error { return cmp.Or(l.failed, f.Close()) }
		}
	}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, nil)), end, failed
	}
	return slog.New(slog.NewTextHandler(w, nil)), end, failed
}

// replacedFlags returns the flags of backup that the config of a job replaces.
func replacedFlags() []string {
	return []string{
		"all", "image", "format", "name", "tag", "keep-base", "transport", "nbd-connections", "verify-cbt", "compression", "skip-unsupported", "raw-offline", "unplug-usb", "allow-shrink", "vm-concurrency", "disk-concurrency",
		"host-concurrency", "sr-concurrency", "limit-read", "limit-write",
		"keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly", "keep-within", "grace",
	}
}

// runJob runs a job of a config file and shows its report.
func runJob(cmd *cobra.Command, o *backupOptions, args []string) error {
	for _, flag := range replacedFlags() {
		if f := cmd.Flags().Lookup(flag); f != nil && f.Changed {
			return usagef("--%s cannot be combined with a config: set it in the job instead", flag)
		}
	}
	if o.files.vmBackup == "" && len(args) > 0 {
		return usagef("the config of the job selects the VMs: name none")
	}
	name := ""
	if cmd.Flags().Changed("job") {
		name = o.job
	}
	n, c, err := o.files.night(cmd, name, args, &o.repository, &o.pool)
	if err != nil {
		return err
	}
	rep, err := watchJob(cmd, o, n, &c.Log)
	if o.output.json {
		if werr := writeLine(cmd.OutOrStdout(), rep); werr != nil {
			return errors.Join(err, werr)
		}
	} else if !o.progress.quiet || err != nil {
		if werr := rep.Text(cmd.OutOrStdout()); werr != nil {
			return errors.Join(err, werr)
		}
	}
	for i := range rep.VMs {
		if v := &rep.VMs[i]; v.Error != "" {
			printError(cmd.ErrOrStderr(), oneLine("VM "+v.Name+": "+v.Error), v.Hint)
		}
	}
	if rep.Damage != "" {
		printError(cmd.ErrOrStderr(), oneLine("DAMAGE: "+rep.Damage), rep.DamageHint)
		return reported{err}
	}
	if errors.Is(err, job.ErrPartial) || errors.Is(err, job.ErrFailed) || errors.Is(err, job.ErrMissed) {
		return reported{err}
	}
	return err
}

// watchJob runs a job, shows its progress, and writes its log. The progress has
// ended when it returns, so that nothing is drawn over the report.
func watchJob(cmd *cobra.Command, o *backupOptions, n *nightly.Night, c *config.Log) (*report.Report, error) {
	ctx := cmd.Context()
	show := o.progress.start(ctx, cmd.ErrOrStderr(), o.output.json)
	defer show.Close()
	n.Progress, n.Log, n.Hint, n.Finding = show, warnings(ctx, show), hint, findingText
	if *c == (config.Log{}) {
		return nightly.Run(ctx, *n)
	}
	log, end, err := logger(c, show)
	if err != nil {
		n.Log.Warn("the log is written here instead", "error", err)
		n.Unsent = append(n.Unsent, oneLine(err.Error()))
	}
	n.Log = withLog(ctx, show, log, c)
	rep, err := nightly.Run(ctx, *n)
	rep.Log(log)
	if cerr := end(); cerr != nil {
		rep.Unsent = append(rep.Unsent, "log: "+oneLine(cerr.Error()))
	}
	return rep, err
}
