package xva

import (
	"strings"
	"testing"

	"xenkeep/internal/disk/disktest"
)

// Archives that are damaged at random are read to an end or an error, within the
// limits of time and memory.
func TestDamagedAtRandom(t *testing.T) {
	disktest.TryDamaged(t, 1000, func(p []byte) {
		if _, err := read(p); err != nil && strings.HasPrefix(err.Error(), "extent") {
			t.Error(err)
		}
	}, archive(t, scattered(t, 3000, 1)))
}
