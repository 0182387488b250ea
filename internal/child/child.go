// Package child prepares programs that xenkeep starts: hooks, password commands
// and tools.
package child

import (
	"os"
	"slices"
	"strings"
)

// secrets are the variables in which xenkeep itself receives secrets. A password
// command is one of them, because its text may contain a password.
func secrets() []string {
	return []string{
		"XENKEEP_PASSWORD", "XENKEEP_PASSWORD_COMMAND",
		"XENKEEP_OTHER_PASSWORD", "XENKEEP_OTHER_PASSWORD_COMMAND",
		"XENKEEP_POOL_PASSWORD",
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN",
		"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD",
	}
}

// Env returns the environment for a program that xenkeep starts: its own, without
// the variables that contain secrets. These are the ones that xenkeep reads, and
// the others that are named. Names of files that contain secrets remain, because
// the permissions of a file protect it.
func Env(others ...string) []string {
	drop := append(secrets(), others...)
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(drop, name)
	})
}
