package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Output is a file that runs write.
type Output struct {
	Key  string // of the config
	File string
	// Replaced is set where a new file takes the place of the old one; others
	// are appended to.
	Replaced bool
}

// Outputs are the files that the runs of all jobs write.
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

// Outputs are the files of the job alone.
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

// Try reports why the file cannot be written; nil where it can. It changes
// nothing: a file that does not exist is tried as one without a name in its
// folder.
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
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) { // a file system without such files
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

// cause is an error without the name of the file, which is in the message.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
