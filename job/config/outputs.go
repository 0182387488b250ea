package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Output is a file that a run writes.
type Output struct {
	Key  string // of the config
	File string
	// Replaced is set if a new file replaces the old one; other files are appended to.
	Replaced bool
}

// Outputs returns the files that the runs of all jobs write.
func (c *Config) Outputs() []Output {
	list := c.Log.outputs()
	for _, name := range sorted(c.Jobs) {
		list = append(list, c.Jobs[name].Outputs()...)
	}
	return list
}

func (l *Log) outputs() []Output {
	if l.File == "" {
		return nil
	}
	return []Output{{Key: "log.file", File: l.File}}
}

// Outputs returns the files of the job.
func (j *Job) Outputs() []Output {
	var list []Output
	for _, o := range []Output{
		{"jobs." + j.Name + ".report-file", j.ReportFile, true},
		{"jobs." + j.Name + ".metrics-file", j.MetricsFile, true},
		{"jobs." + j.Name + ".status-log", j.StatusLog, false},
	} {
		if o.File != "" {
			list = append(list, o)
		}
	}
	return list
}

// Try returns why the file cannot be written; nil if it can. It changes nothing: if
// the file does not exist, it tries an unnamed file in the folder.
func (o Output) Try() error {
	info, err := os.Stat(o.File)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a folder, not a file", o.File)
	case err == nil && !o.Replaced:
		f, err := os.OpenFile(o.File, os.O_APPEND|os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("%s cannot be written: %w", o.File, cause(err))
		}
		return f.Close()
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s cannot be written: %w", o.File, cause(err))
	}
	dir := filepath.Dir(o.File)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) { // the file system does not support unnamed files
		err = unix.Access(dir, unix.W_OK|unix.X_OK)
	} else if err == nil {
		err = unix.Close(fd)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s cannot be written: there is no folder %s", o.File, dir)
	}
	if err != nil {
		return fmt.Errorf("%s cannot be written: folder %s: %w", o.File, dir, err)
	}
	return nil
}

// cause returns an error without the name of the file, which the message contains
// already.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
