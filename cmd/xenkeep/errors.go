package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/text"
	"xenkeep/job"
	"xenkeep/job/config"
	"xenkeep/job/exchange"
	"xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/repo/prune"
	"xenkeep/xapi"
)

// Errors have this form: one line that begins with "xenkeep:", in lower case, the
// object before the cause. A hint is a second line.

// reported is an error that was printed already.
type reported struct{ error }

func (e reported) Unwrap() error { return e.error }

func fail(w io.Writer, err error) {
	var told reported
	if errors.As(err, &told) {
		return
	}
	var problems *config.Problems
	if errors.As(err, &problems) { // each on a line of its own
		for line := range strings.SplitSeq(problems.Error(), "\n") {
			printError(w, oneLine(line), "")
		}
		return
	}
	printError(w, message(err), hint(err))
}

func printError(w io.Writer, text, hint string) {
	fmt.Fprintf(w, "xenkeep: %s\n", text)
	if hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", oneLine(hint))
	}
}

// message is an error as one line.
func message(err error) string {
	var untrusted *xapi.UntrustedHostError
	var lost *xapi.UnreachableError
	switch {
	case errors.As(err, &lost):
		return oneLine(err.Error())
	case errors.As(err, &untrusted) && untrusted.Pinned:
		return fmt.Sprintf("pool host %s: its certificate is none of the pinned ones: it has the fingerprint %s", untrusted.Host, untrusted.Fingerprint)
	case errors.As(err, &untrusted):
		return fmt.Sprintf("pool host %s: nothing vouches for its certificate, which has the fingerprint %s", untrusted.Host, untrusted.Fingerprint)
	case errors.Is(err, context.DeadlineExceeded):
		return "timed out: " + oneLine(err.Error())
	}
	return oneLine(err.Error())
}

// oneLine joins the lines of errors.Join, and replaces control characters in names,
// which a terminal would obey.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return printable(s)
}

func printable(s string) string { return text.Clean(s) }

// hint returns the next step after an error, or "" if that is obvious.
func hint(err error) string {
	var untried *repo.UntriedError
	var untrusted *xapi.UntrustedHostError
	switch {
	case errors.As(err, &untrusted) && untrusted.Pinned:
		return "the certificate was renewed, or this is another host: compare it on the host (openssl x509 -noout -fingerprint -sha256 -in /etc/xensource/xapi-ssl.pem), then replace the old fingerprint in --pool-fingerprint, XENKEEP_POOL_FINGERPRINT or the config"
	case errors.As(err, &untrusted):
		return "compare it on the host (openssl x509 -noout -fingerprint -sha256 -in /etc/xensource/xapi-ssl.pem), then add --pool-fingerprint " + untrusted.Fingerprint
	case job.HintOf(err) != "":
		return job.HintOf(err)
	case object.HintOf(err) != "":
		return object.HintOf(err)
	case errors.Is(err, object.ErrNoRepository):
		return "is the path right, and is what should be mounted there? xenkeep init makes a new repository"
	case errors.Is(err, object.ErrLocked):
		return "nobody can delete it before that; afterwards a policy of xenkeep forget deletes it"
	case errors.Is(err, object.ErrExists):
		return "a new repository needs an empty folder, or a prefix without objects"
	case errors.Is(err, object.ErrNoSpace):
		return "make room, or raise the quota; what was uploaded counts next time"
	case errors.As(err, &untried):
		return "if yours is among them, --key-slot ID tries it alone; other slots that state such a cost are forged: whoever can write to the storage has put them there, and their objects slots/a/ID and slots/b/ID can be deleted"
	case errors.Is(err, slot.ErrWrongSecret):
		return "a printed key page opens the repository too: XENKEEP_KEY_FILE=page"
	case errors.Is(err, repo.ErrReplaced):
		return "if it was put there on purpose, xenkeep repo accept makes this machine use it; otherwise the storage is in the wrong hands, or another disk is mounted"
	case errors.Is(err, repo.ErrRevocation):
		return "xenkeep key revocations --put-back writes it again on a machine that has seen it; with a full key, xenkeep key revoke makes another, and xenkeep key revocations --give-up OBJECT drops this one"
	case errors.Is(err, prune.ErrUnreadable):
		return "xenkeep check lists the damage; if it cannot be repaired, xenkeep prune --forget-damaged ID gives that snapshot up"
	case errors.Is(err, seal.ErrNoDataKey):
		return "open the repository with the password or key of a full key slot, or with a printed key page; xenkeep key list shows the slots"
	case errors.Is(err, job.ErrUnsupported):
		return "--skip-unsupported leaves out disks that cannot be snapshotted"
	case errors.Is(err, exchange.ErrChain):
		return "name the files of a chain in order, the one that holds the whole disk first"
	case errors.Is(err, job.ErrKeptUUID):
		return "restore over its disks with --in-place, take it away first, or let the restored VM have a new UUID"
	case errors.Is(err, job.ErrSpace):
		return "free space on the SR, or give another with --to-sr"
	case errors.Is(err, job.ErrUnstarted):
		return "look at the reason, then start it on the pool; nothing is to be restored again"
	case errors.Is(err, restore.ErrDrill):
		return "the snapshot's data match their IDs; restore the VM (--vm) and look at its console"
	case errors.Is(err, job.ErrActive):
		return "wait for it to end, or give this run another --job"
	case errors.Is(err, repo.ErrNoSlot):
		return "xenkeep key list lists what there is"
	case errors.Is(err, repo.ErrFullWriter):
		return "copy what is to be kept to a new repository, and delete this one"
	case errors.Is(err, repo.ErrLastSlot):
		return "add another with xenkeep key add first"
	case errors.Is(err, repo.ErrRenamed):
		return "name the VM by its present name, or by its UUID"
	case errors.Is(err, repo.ErrNoSnapshot), errors.Is(err, repo.ErrAmbiguous):
		return "xenkeep snapshots lists what there is"
	case errors.Is(err, seal.ErrCorrupt), errors.Is(err, chunkstore.ErrMissing), errors.Is(err, object.ErrTooLarge):
		return "xenkeep check --read-data lists the damaged data"
	}
	return ""
}
