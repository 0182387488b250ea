// Package cpu measures how busy the processors of this machine are.
package cpu

import "time"

// Times are how long all processors together have been idle, and in total, since
// the machine started. Total is zero where this is not known.
type Times struct{ Idle, Total time.Duration }

// Busy returns the share of the time between before and t in which the processors
// were busy, and false where that is not known. Waiting for a disk is not busy.
func (t Times) Busy(before Times) (float64, bool) {
	total := t.Total - before.Total
	if before.Total == 0 || total <= 0 {
		return 0, false
	}
	return 1 - (t.Idle-before.Idle).Seconds()/total.Seconds(), true
}
