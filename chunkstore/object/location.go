package object

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// ErrLocation means that a location is neither a bucket nor the path of a
// folder.
var ErrLocation = errors.New("no location of a repository")

var (
	windowsPath = regexp.MustCompile(`^([A-Za-z]:[\\/]|\\\\)`)
	otherScheme = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*):`)
)

// CheckLocation refuses locations that have a meaning for another program or
// for a shell, and that would become a folder with that literal name here.
func CheckLocation(location string) error {
	refuse := func(cause, hint string) error {
		return &Error{Op: "repository", Name: location, Class: ErrLocation, Cause: errors.New(cause), Hint: hint}
	}
	scheme := ""
	if m := otherScheme.FindStringSubmatch(location); m != nil {
		scheme = m[1]
	}
	switch {
	case location == "~" || strings.HasPrefix(location, "~/"):
		hint := "write the whole path"
		if home, err := os.UserHomeDir(); err == nil {
			hint += ": " + filepath.Join(home, strings.TrimPrefix(location, "~"))
		}
		return refuse("~ stands for a home only where a shell has put it in", hint)
	case windowsPath.MatchString(location):
		return refuse("a path of Windows", "give the folder at which it is mounted on this machine, for example /mnt/backup")
	case scheme == "" || scheme == "s3":
		return nil
	}
	folder := "./" + location + " names a folder"
	switch strings.ToLower(scheme) {
	case "s3":
		return refuse("S3 is written in small letters", "s3"+location[2:])
	case "b2", "gs", "gcs", "r2", "wasabi", "minio", "oss", "cos":
		return refuse("storage "+scheme+" is not known", "use its S3 interface: s3:https://HOST/BUCKET/PREFIX; "+folder)
	case "http", "https":
		return refuse("a web address", "a bucket of S3 is s3:"+location)
	case "file":
		return refuse("folders are given by their path", "leave file: away, for example /"+strings.TrimLeft(location[len(scheme)+1:], "/"))
	}
	return refuse("storage "+scheme+" is not known", "give a bucket, s3:https://HOST/BUCKET/PREFIX, or a folder, at which other storage may be mounted (rclone mount, sshfs, NFS, SMB); "+folder)
}
