package restore

// DatabaseSteps returns the instructions for using a database dump that was restored
// to a file.
func DatabaseSteps(file string) []string {
	return []string{
		"It holds the pool's secrets: keep the file as safe as the pool's master.",
		"Copy it to the host that is to be master, of the same version as the pool was, and log in there as root.",
		"xe pool-restore-database file-name=" + file + " dry-run=true",
		"xe pool-restore-database file-name=" + file + "   (the host forgets its pool members, takes the database, and restarts)",
		"Then make the other hosts join again, or run xe pool-recover-slaves if they still belong to it.",
	}
}
