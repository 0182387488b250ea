// Package s3test tests a repository against a real S3 server: with locks and an
// attacker, with credentials that may only add objects, and through a connection on
// which everything fails. It contains only tests.
package s3test
