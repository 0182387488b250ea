package nightly

import (
	"testing"
	"time"
)

// Row S10 of the fault list: a hook receives what it is told, and none of our
// secrets, wherever we take them from.
func TestHookGetsNoSecrets(t *testing.T) {
	for _, name := range []string{"XENKEEP_PASSWORD", "XENKEEP_POOL_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MAIL_PASSWORD"} {
		t.Setenv(name, "tiger")
	}
	t.Setenv("XENKEEP_PASSWORD_FILE", "/etc/password")
	const command = `test -n "$PATH" && test "$XENKEEP_JOB" = night && test "$XENKEEP_PASSWORD_FILE" = /etc/password && ! env | grep tiger`
	if err := hook(t.Context(), "before", command, time.Minute, []string{"MAIL_PASSWORD"}, "XENKEEP_JOB=night"); err != nil {
		t.Error(err)
	}
}
