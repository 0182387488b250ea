package job

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockInfo is what the file of a lock says of the run that holds it.
type lockInfo struct {
	Process int       `json:"process"`
	Since   time.Time `json:"since"`
}

// activeError is the error for a lock that another run holds.
type activeError struct {
	what string   // of which the other run is; "" where the caller says so
	by   lockInfo // zero where that is not known
	now  time.Time
}

func (a *activeError) Error() string {
	what := a.what
	if what != "" {
		what += ": "
	}
	if a.by.Process == 0 {
		return what + ErrActive.Error()
	}
	since, now := a.by.Since.Local(), a.now.Local()
	layout := "15:04"
	if since.Format(time.DateOnly) != now.Format(time.DateOnly) {
		layout = "2006-01-02 15:04"
	}
	return fmt.Sprintf("%sa run has been active since %s (process %d)", what, since.Format(layout), a.by.Process)
}

func (a *activeError) Unwrap() error { return ErrActive }

func (a *activeError) Hint() string {
	if a.by.Process == 0 {
		return "wait for it to end"
	}
	return fmt.Sprintf("wait for it to end; if it hangs, end process %d, and the next run cleans up after it", a.by.Process)
}

// lockError is a folder in which no lock can be made.
type lockError struct {
	dir string
	err error
}

func (e *lockError) Error() string { return fmt.Sprintf("folder %s for locks: %v", e.dir, e.err) }

func (e *lockError) Unwrap() error { return e.err }

func (e *lockError) Hint() string {
	return "make room there, or name another folder with --cache-dir or XENKEEP_CACHE_DIR"
}

// lockFile takes a right that one run at a time has on this machine: what names
// it for people, scope and key for the lock. The kernel takes it back when the
// process ends, however it ends. It coordinates nothing between machines, as the
// repository needs no lock.
func lockFile(dir, scope, key, what string) (release func(), err error) {
	dir = cmp.Or(dir, filepath.Join(os.TempDir(), fmt.Sprintf("xenkeep-%d", os.Getuid())))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &lockError{dir, err}
	}
	sum := sha256.Sum256([]byte(key))
	f, err := os.OpenFile(filepath.Join(dir, scope+"-"+hex.EncodeToString(sum[:6])+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &lockError{dir, err}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			a := &activeError{what: what, now: time.Now()}
			if p, rerr := io.ReadAll(io.LimitReader(f, 1<<10)); rerr == nil {
				_ = json.Unmarshal(p, &a.by) // the other may not have written it yet
			}
			err = a
		}
		return nil, errors.Join(err, f.Close())
	}
	// Only for the message to others: that it cannot be written harms nobody.
	if p, err := json.Marshal(lockInfo{Process: os.Getpid(), Since: time.Now().UTC()}); err == nil && f.Truncate(0) == nil {
		_, _ = f.WriteAt(p, 0)
	}
	return func() {
		_ = f.Truncate(0)
		_ = f.Close()
	}, nil
}

// LockJob takes the right to run a job of a repository.
func LockJob(dir, repository, job string) (release func(), err error) {
	return lockFile(dir, repository, job, "job "+job)
}

// LockThing takes the right to work on one VM, image or import: all that a run
// without a job needs, so that runs on different VMs go on at the same time.
func LockThing(dir, repository, class, id, what string) (release func(), err error) {
	return lockFile(dir, repository, class+"\x00"+id, what)
}
