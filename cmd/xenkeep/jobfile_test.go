package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Each flag of backup is either replaced by the config of a job, and refused beside
// it, or it is one of those that select the config, the pool and the repository, or
// that change only the output. A new flag must be added to one of the two lists.
func TestFlagsBesideConfig(t *testing.T) {
	beside := []string{
		"cache-dir", "config", "help", "job", "json", "key-file", "key-slot", "password-command", "password-file", "pool", "pool-ca-file", "pool-fingerprint",
		"pool-insecure", "pool-password-file", "pool-user", "quiet", "repository", "vmbackup-config", "vmbackup-password-file",
	}
	newBackupCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if (slices.Contains(beside, f.Name) || strings.HasPrefix(f.Name, "s3-")) == slices.Contains(replacedFlags(), f.Name) {
			t.Errorf("--%s must be in exactly one of replacedFlags and the list of this test", f.Name)
		}
	})
}
