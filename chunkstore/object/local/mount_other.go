//go:build !linux

package local

// onNetwork cannot tell here, and takes the safe side.
func onNetwork(string) (bool, error) { return true, nil }
