// Package jobtest provides what tests of runs share: a World is a simulated pool,
// a client of it, and a repository, with helpers that back up, restore, clean up
// and compare.
package jobtest
