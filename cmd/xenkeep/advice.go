package main

import (
	"strings"

	"xenkeep/repo/check"
)

// advice returns the next step after a finding of check or repair, or "" if there is
// none.
func advice(f check.Finding) string {
	switch f.Kind {
	case check.BadObject:
		return objectAdvice(f.Object)
	case check.Revoked:
		return "it counts for nothing; xenkeep forget takes a snapshot away"
	case check.Junk:
		return "it is ignored and does no harm; xenkeep repair junk deletes it. Someone else can write to this storage"
	case check.Disbelieved:
		return "the rest of it counts; xenkeep key revoke shuts the key out if it was stolen"
	case check.Withdrawn:
		return "nothing else is lost with it; xenkeep forget takes it away"
	case check.Remade:
		return "made again from the packs"
	case check.Uncovered:
		return "all can be read; the next backup or xenkeep repair index puts it right"
	case check.MissingPack, check.UnreadPack:
		return withKey(f) + "xenkeep repair snapshots lists the data that is lost with it"
	case check.PackSize:
		return withKey(f) + "xenkeep repair packs saves what can be read of it"
	case check.DamagedPack:
		return "xenkeep repair snapshots lists the lost data, xenkeep repair packs saves the rest"
	case check.ChangedPack:
		return withKey(f) + "xenkeep check --read-data lists the damaged data"
	case check.LostPack:
		return "nothing can be saved of it; xenkeep repair snapshots lists the lost data"
	case check.SlotsDiffer:
		return "xenkeep key change-password writes both anew; the one that opens is sound"
	case check.SlotDamaged:
		return "xenkeep key change-password writes both anew"
	case check.NoSlot:
		return "a printed key page opens the repository, and xenkeep key change-password makes a slot of it"
	case check.BadCondemned:
		return "no backup runs while a list cannot be read; when nothing else runs, xenkeep prune --exclusive --forget-damaged gives the list up"
	}
	return ""
}

func withKey(f check.Finding) string {
	if f.Keyless {
		return "with a key, "
	}
	return ""
}

// objectAdvice is for an object that is damaged or missing, by the folder it is in.
func objectAdvice(name string) string {
	switch folder, _, _ := strings.Cut(name, "/"); folder {
	case "config":
		return "keys hold a copy, so the repository still opens"
	case "index":
		return "what it covered is found again in the packs themselves; xenkeep repair index puts it right"
	case "snapshots":
		return "this backup is lost unless another copy of the object exists"
	case "revoked":
		return "backup, forget and prune are refused until it is there again: xenkeep key revocations"
	case "over":
		return "snapshots that it kept from counting are checked like others; delete the object"
	case "catalogue":
		return "nothing is lost: delete the object, and the next prune writes another"
	}
	return ""
}
