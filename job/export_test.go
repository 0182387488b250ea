package job

import (
	"testing"
	"time"
)

// RenewEvery makes runs renew their marks more often, until t ends.
func RenewEvery(t *testing.T, d time.Duration) {
	was := renewEvery
	renewEvery = d
	t.Cleanup(func() { renewEvery = was })
}
