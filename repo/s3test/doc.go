// Package s3test holds a repository against a real S3 server: with locks and an
// attacker, with credentials that may only add, and through a line on which
// everything goes wrong. It has tests alone.
package s3test
