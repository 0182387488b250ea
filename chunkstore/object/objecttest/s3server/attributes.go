package s3server

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hasAttributes tells whether files in dir can have the extended attributes
// that the server keeps its metadata in.
func hasAttributes(dir string) bool {
	path := filepath.Join(dir, ".attributes")
	if os.WriteFile(path, nil, 0o600) != nil {
		return false
	}
	defer os.Remove(path)
	return unix.Setxattr(path, "user.xenkeep", []byte("x"), 0) == nil
}
