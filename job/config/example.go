package config

import _ "embed"

// Example is a config with every key explained; it works as it stands once the
// names in it are those of a pool.
//
//go:embed example.toml
var Example []byte
