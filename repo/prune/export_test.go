package prune

// GatherChunks has walks look up so many chunks at once, until restore.
func GatherChunks(n int) (restore func()) {
	old := walkChunks
	walkChunks = n
	return func() { walkChunks = old }
}
