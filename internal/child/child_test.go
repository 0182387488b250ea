package child_test

import (
	"slices"
	"strings"
	"testing"

	"xenkeep/internal/child"
)

// Row S10 of the fault list: programs that xenkeep starts do not receive its
// secrets.
func TestEnv(t *testing.T) {
	for _, name := range []string{
		"XENKEEP_PASSWORD", "XENKEEP_PASSWORD_COMMAND", "XENKEEP_OTHER_PASSWORD", "XENKEEP_OTHER_PASSWORD_COMMAND", "XENKEEP_POOL_PASSWORD",
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MINIO_ROOT_PASSWORD", "MAIL_PASSWORD", "XENKEEP_PASSWORD_FILE", "OTHER",
	} {
		t.Setenv(name, "value of "+name)
	}
	got := child.Env("MAIL_PASSWORD")
	got = slices.DeleteFunc(got, func(v string) bool { return !strings.Contains(v, "=value of ") })
	slices.Sort(got)
	if want := []string{"OTHER=value of OTHER", "XENKEEP_PASSWORD_FILE=value of XENKEEP_PASSWORD_FILE"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
