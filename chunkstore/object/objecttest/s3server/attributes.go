package s3server

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hasAttributes reports whether files in dir can have extended attributes, in
// which the server stores its metadata.
func hasAttributes(dir string) bool {
	path := filepath.Join(dir, ".attributes")
	if os.WriteFile(path, nil, 0o600) != nil {
		return false
	}
	defer os.Remove(path)
	return unix.Setxattr(path, "user.xenkeep", []byte("x"), 0) == nil
}
