// Command xenkeep backs up the virtual machines of a XenServer or XCP-ng pool
// into a deduplicating, encrypted repository, and restores them. Each command
// is a file of this package: it parses flags, makes one call of package job or repo,
// and prints the result as text or JSON. It makes no decisions.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/job"
	"xenkeep/job/poolsnap"
	"xenkeep/repo"
	"xenkeep/repo/forget"
	"xenkeep/repo/prune"
)

// Exit codes; docs/reference.md has the same table.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitPartial      = 3
	exitDamage       = 4
	exitNoRepository = 10
	exitActive       = 11
	exitWrongSecret  = 12
	exitWriteOnly    = 13
	exitInterrupted  = 130
)

var exitMeanings = map[int]string{
	exitOK:           "ok",
	exitFailed:       "failed",
	exitUsage:        "wrong usage",
	exitPartial:      "some VMs or disks failed, or are not protected",
	exitDamage:       "damage found",
	exitNoRepository: "no repository there",
	exitActive:       "another run of this job is active",
	exitWrongSecret:  "wrong password or key",
	exitWriteOnly:    "this key may only write: a full key is needed",
	exitInterrupted:  "interrupted",
}

var (
	errInterrupted = errors.New("interrupted")
	// errUsage marks errors of a command line.
	errUsage = errors.New("wrong usage")
	// errDamage marks results that report damage.
	errDamage = errors.New("damage found")
)

func exitCode(err error) int {
	var blob *chunkstore.BlobError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, errUsage), errors.Is(err, poolsnap.ErrValue), errors.Is(err, poolsnap.ErrSeveral), errors.Is(err, repo.ErrTime):
		return exitUsage
	case errors.Is(err, job.ErrDamage):
		return exitDamage // takes precedence over other failures
	case errors.Is(err, job.ErrPartial), errors.Is(err, forget.ErrStopped), errors.Is(err, job.ErrMissed), errors.Is(err, errUncovered), errors.Is(err, job.ErrUnstarted):
		return exitPartial
	case errors.Is(err, object.ErrNoRepository):
		return exitNoRepository
	case errors.Is(err, job.ErrActive):
		return exitActive
	case errors.Is(err, slot.ErrWrongSecret):
		return exitWrongSecret
	case errors.Is(err, seal.ErrNoDataKey):
		return exitWriteOnly
	case errors.Is(err, errDamage), errors.Is(err, prune.ErrUnreadable), errors.Is(err, repo.ErrRevocation), errors.Is(err, job.ErrCBTMissedChange), errors.Is(err, seal.ErrCorrupt), errors.Is(err, chunkstore.ErrMissing), errors.Is(err, object.ErrTooLarge):
		return exitDamage
	case errors.As(err, &blob) && (errors.Is(err, object.ErrNotFound) || errors.Is(err, object.ErrShort) || errors.Is(err, seal.ErrForeign)):
		return exitDamage // a pack is missing, or was replaced by another
	}
	return exitFailed
}

func main() {
	setMemory()
	hideMemory()
	ctx, cancel := context.WithCancelCause(context.Background())
	var d diagnostics
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel(errInterrupted)
		<-signals
		_ = d.stop() // keeps the records so far
		os.Exit(exitInterrupted)
	}()
	os.Exit(run(ctx, &d, os.Args[1:], os.Stdout, os.Stderr))
}

// interrupted returns the error of an interrupted command. It names the unfinished
// work, if any, instead of the call that failed.
func interrupted(err error) error {
	var left interface {
		error
		Leaves() string
	}
	if !errors.As(err, &left) {
		return errInterrupted
	}
	return &leaving{left.Leaves(), job.HintOf(err)}
}

// leaving is an interrupted command that leaves something unfinished.
type leaving struct{ leaves, hint string }

func (l *leaving) Error() string { return errInterrupted.Error() + "; " + l.leaves }
func (l *leaving) Unwrap() error { return errInterrupted }
func (l *leaving) Hint() string  { return l.hint }

// run runs one command line and returns its exit code. It starts d with the
// command and ends it.
func run(ctx context.Context, d *diagnostics, args []string, stdout, stderr io.Writer) int {
	began := false
	root := newRootCommand()
	prepare(root, d, &began)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !began && !errors.Is(err, errUsage) {
		// Cobra reports wrong usage before the command begins.
		err = usagef("%w", err)
	}
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		// The interruption caused the failure. Unfinished work is still reported.
		err = interrupted(err)
	}
	if err != nil {
		fail(stderr, err)
		if errors.Is(err, errUsage) {
			fmt.Fprintf(stderr, "see %s --help\n", cmd.CommandPath())
		}
	}
	code := exitCode(err)
	if err := d.end(code); err != nil {
		printError(stderr, "warning: "+oneLine(err.Error()), "")
	}
	return code
}
