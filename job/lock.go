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

// lockInfo is the content of a lock file, written by the run that holds the lock.
type lockInfo struct {
	Process int       `json:"process"`
	Since   time.Time `json:"since"`
}

// activeError is the error for a lock that another run holds.
type activeError struct {
	what string   // what the other run locked; "" if the caller adds that
	by   lockInfo // zero if it is not known
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

// lockError is the error for a folder in which no lock can be created.
type lockError struct {
	dir string
	err error
}

func (e *lockError) Error() string { return fmt.Sprintf("folder %s for locks: %v", e.dir, e.err) }

func (e *lockError) Unwrap() error { return e.err }

func (e *lockError) Hint() string {
	return "make room there, or name another folder with --cache-dir or XENKEEP_CACHE_DIR"
}

// lockFile takes a lock that only one run on this machine can hold. scope and key
// identify the lock, what names it for users. The kernel releases the lock when the
// process ends in any way. It does not coordinate different machines, because the
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
				_ = json.Unmarshal(p, &a.by) // the other run may not have written it yet
			}
			err = a
		}
		return nil, errors.Join(err, f.Close())
	}
	// The content only improves the error of other runs, and so an error of writing it
	// is ignored.
	if p, err := json.Marshal(lockInfo{Process: os.Getpid(), Since: time.Now().UTC()}); err == nil && f.Truncate(0) == nil {
		_, _ = f.WriteAt(p, 0)
	}
	return func() {
		_ = f.Truncate(0)
		_ = f.Close()
	}, nil
}

// LockJob locks a job of a repository. It returns ErrActive if another run holds the
// lock.
func LockJob(dir, repository, job string) (release func(), err error) {
	return lockFile(dir, repository, job, "job "+job)
}

// LockThing locks one VM, image or import. A run without a job locks only these, so
// that runs on different VMs can be concurrent. It returns ErrActive if another run
// holds the lock.
func LockThing(dir, repository, class, id, what string) (release func(), err error) {
	return lockFile(dir, repository, class+"\x00"+id, what)
}
