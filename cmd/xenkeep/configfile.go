package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"xenkeep/job/config"
)

// defaultConfig is the config that is used if none is named.
const defaultConfig = "/etc/xenkeep/xenkeep.toml"

// addConfigFlags adds --config to all commands that use a repository or a pool
// and have no --config of their own.
func addConfigFlags(root *cobra.Command) {
	walk(root, func(cmd *cobra.Command) {
		s := cmd.Flags()
		if s.Lookup("config") == nil && (s.Lookup("repository") != nil || s.Lookup("pool") != nil) {
			s.String("config", "", "take repository, password and pool from this config `file` ("+defaultConfig+")")
		}
	})
}

// foundConfig returns the config file that a command uses, or "": the file of
// --config, of XENKEEP_CONFIG, or the default file if it exists. The first is
// explicit and overrides the environment; the others only supply values that
// neither flags nor the environment set.
func foundConfig(flags *pflag.FlagSet) (file string, explicit bool) {
	if flags == nil {
		return "", false
	}
	f := flags.Lookup("config")
	switch {
	case f == nil:
		return "", false
	case f.Value.String() != "":
		return f.Value.String(), f.Changed
	}
	if _, err := os.Stat(defaultConfig); err != nil {
		return "", false
	}
	return defaultConfig, false
}

// givenBy returns a function that reports whether the config must not override a
// flag: flags on the command line and, unless the config is explicit, flags that the
// environment set.
func givenBy(flags *pflag.FlagSet, explicit bool) func(string) bool {
	return func(name string) bool {
		f := flags.Lookup(name)
		return f != nil && (f.Changed || !explicit && f.Value.String() != f.DefValue)
	}
}

// fill takes location and password from the config, if there is one and they are not
// set otherwise.
func (f *repositoryFlags) fill() error {
	file, explicit := foundConfig(f.flags)
	if file == "" || !explicit && f.location != "" {
		return nil // a config's password belongs to its own repository
	}
	c, err := config.Load(file)
	if err != nil {
		return err
	}
	given := givenBy(f.flags, explicit)
	if !explicit && os.Getenv("XENKEEP_PASSWORD") != "" {
		c.Repository.Password, c.Repository.KeyFile = config.Secret{}, ""
	}
	f.use(given, c)
	return nil
}

// use takes values from a config that are not set otherwise.
func (f *repositoryFlags) use(given func(string) bool, c *config.Config) {
	if c.Repository.Location != "" && !given("repository") {
		f.location = c.Repository.Location
	}
	if c.Repository.CacheDir != "" && !given("cache-dir") {
		f.cacheDir = c.Repository.CacheDir
	}
	secret := given("key-file") || given("password-file") || given("password-command")
	if !secret && (c.Repository.KeyFile != "" || !c.Repository.Password.IsZero()) {
		f.secret = secretFlagsValues{keyFile: c.Repository.KeyFile, config: c.Repository.Password}
	}
	f.flags = nil // filled
}

// fill takes the pool from the config, if there is one: its only pool, or the pool
// whose name or address is in --pool or XENKEEP_POOL.
func (f *poolFlags) fill() error {
	file, explicit := foundConfig(f.flags)
	if file == "" {
		return nil
	}
	c, err := config.Load(file)
	if err != nil && !explicit && f.url != "" {
		return nil // an address: the config is not needed
	}
	if err != nil {
		return err
	}
	given := givenBy(f.flags, explicit)
	byHand := f.url
	if explicit && !f.flags.Changed("pool") {
		f.url = "" // of the environment
	}
	p, ok := c.Pools[byHand]
	for _, name := range c.PoolNames() {
		if !ok && byHand != "" && c.Pools[name].URL == byHand {
			p, ok = c.Pools[name], true
		}
	}
	names := c.PoolNames()
	switch {
	case ok:
	case f.url != "" || len(names) == 0:
		return nil
	case len(names) > 1:
		return usagef("which pool of %s? It has %s: choose one with --pool NAME", file, strings.Join(names, ", "))
	default:
		p = c.Pools[names[0]]
	}
	f.url = p.URL
	if !explicit && os.Getenv("XENKEEP_POOL_PASSWORD") != "" {
		p.Password = config.Secret{}
	}
	f.use(given, &p)
	return nil
}

// use takes values, except the address, from a pool of a config that are not set
// otherwise.
func (f *poolFlags) use(given func(string) bool, p *config.Pool) {
	if p.User != "" && !given("pool-user") {
		f.user = p.User
	}
	if p.CAFile != "" && !given("pool-ca-file") {
		f.caFile = p.CAFile
	}
	if !given("pool-fingerprint") && (len(p.Fingerprints) > 0 || p.CAFile != "") {
		f.fingerprints = p.Fingerprints
	}
	f.insecure = f.insecure || p.Insecure
	if !given("pool-password-file") && !p.Password.IsZero() {
		f.passwordFile, f.config = "", p.Password
	}
	f.flags = nil // filled
}
