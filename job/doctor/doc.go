// Package doctor examines a pool and a repository before the first backup, and tests
// an SR with a disk of its own.
package doctor
