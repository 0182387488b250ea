package config

import _ "embed"

// Example is a config that explains every key. It is valid when the names in it are
// replaced by those of a pool.
//
//go:embed example.toml
var Example []byte
