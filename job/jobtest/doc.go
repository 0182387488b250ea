// Package jobtest contains fixtures for tests of runs: a World is a simulated pool, a
// client of it, and a repository, with helpers that back up, restore, clean up and
// compare.
package jobtest
