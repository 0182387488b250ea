package object_test

import (
	"errors"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
)

// A location that has a meaning for other programs is refused with an error
// that names it, and does not become a local folder.
func TestCheckLocation(t *testing.T) {
	t.Setenv("HOME", "/home/someone")
	for location, hint := range map[string]string{
		"/srv/backup": "", "backup": "", "./b2:x": "", "/srv/a:b": "", "a/b:c": "", "~backup": "", "": "",
		"s3:https://host/bucket": "", "s3://bucket/prefix": "",
		"b2:bucket/x":         "s3:https://HOST/BUCKET/PREFIX; ./b2:bucket/x names a folder",
		"rclone:remote:x":     "rclone mount",
		"sftp://host/x":       "sshfs",
		"nas:/backup":         "./nas:/backup names a folder",
		"azure:container:/":   "s3:https://HOST/BUCKET/PREFIX",
		"S3:https://host/x":   "s3:https://host/x",
		"https://host/bucket": "s3:https://host/bucket",
		"file:///srv/backup":  "for example /srv/backup",
		`C:\backup`:           "mounted on this machine",
		"D:/backup":           "mounted on this machine",
		`\\server\share`:      "mounted on this machine",
		"~/backup":            "/home/someone/backup",
		"~":                   "/home/someone",
	} {
		err := object.CheckLocation(location)
		switch {
		case (err == nil) != (hint == ""):
			t.Errorf("%q: %v", location, err)
		case err == nil:
		case !errors.Is(err, object.ErrLocation) || !strings.Contains(err.Error(), location) || !strings.Contains(object.HintOf(err), hint):
			t.Errorf("%q: %v, hint %q, want %q", location, err, object.HintOf(err), hint)
		}
	}
}
