//go:build !linux

package local

// onNetwork has no way to detect this here, and returns the safe answer.
func onNetwork(string) (bool, error) { return true, nil }
