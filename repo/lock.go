package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
)

// MaxLockDays is the longest lock, in days, that can be requested.
const MaxLockDays = 3650

// startLocks makes the store lock every object that is put from now on.
func startLocks(objects object.Store, days int) error {
	if days == 0 {
		return nil
	}
	k, ok := object.VersionedOf(objects)
	if !ok || days < 0 || days > MaxLockDays {
		return fmt.Errorf("%s: locks for %d days: %w", objects.Location(), days, object.ErrUnsupported)
	}
	k.SetLockDays(days)
	return nil
}

// provenLocked checks that the storage has applied the locks that it was asked for.
func provenLocked(ctx context.Context, objects object.Store, days int) error {
	k, ok := object.VersionedOf(objects)
	if days == 0 || !ok {
		return nil
	}
	until, err := k.LockedUntil(ctx, configName, "")
	if err == nil && until.IsZero() {
		err = fmt.Errorf("%s: objects are not locked, as they should be: %w", objects.Location(), object.ErrUnsupported)
	}
	return err
}

// LockDays returns for how many days new objects are locked against deletion; 0
// means not at all.
func (r *Repository) LockDays() int { return r.config.LockDays }

// LockedUntil returns the time until which a snapshot cannot be forgotten, or the
// zero time if it can be forgotten now.
func (r *Repository) LockedUntil(ctx context.Context, s *Snapshot) (time.Time, error) {
	k, ok := object.VersionedOf(r.objects)
	if !ok || r.config.LockDays == 0 {
		return time.Time{}, nil
	}
	until, err := k.LockedUntil(ctx, snapshotPrefix+s.id, "")
	if errors.Is(err, object.ErrNotFound) || err == nil && until.Before(time.Now()) {
		return time.Time{}, nil
	}
	return until, err
}

// SetLockDays writes the config again with another lock time. Existing locks do not
// change. It needs a full key.
func (r *Repository) SetLockDays(ctx context.Context, days int) error {
	if err := startLocks(r.objects, days); err != nil {
		return err
	}
	if r.keys.Cert.Role() != seal.Full {
		return fmt.Errorf("config: %w", seal.ErrNoDataKey)
	}
	err := r.changeConfig(ctx, func(fields map[string]json.RawMessage) error {
		fields["lock_days"] = json.RawMessage(strconv.Itoa(days))
		return nil
	})
	if err != nil {
		return err
	}
	return provenLocked(ctx, r.objects, days)
}

// olderSlots reads versions of key slots that were overwritten or deleted, newest
// first.
func olderSlots(ctx context.Context, objects object.Store) ([]storedSlot, error) {
	k, ok := object.VersionedOf(objects)
	if !ok {
		return nil, nil
	}
	var all []object.Version
	err := k.ListVersions(ctx, "slots/", func(v object.Version) error {
		if !v.Deleted {
			all = append(all, v)
		}
		return nil
	})
	if errors.Is(err, object.ErrUnsupported) || errors.Is(err, object.ErrPermission) {
		return nil, nil // no versions exist, or the credentials may not read them
	}
	if err != nil {
		return nil, err
	}
	var older []storedSlot
	kept := 0
	for _, v := range all {
		data, err := k.GetVersion(ctx, v.Name, v.ID, 0, -1)
		if object.Retriable(err) {
			return nil, err
		}
		if err != nil {
			continue
		}
		if kept += len(data); kept > 4*slotsKept {
			break // nobody writes so many
		}
		if h, err := slot.ReadHead(data); err == nil && strings.HasSuffix(v.Name, "/"+h.ID) {
			older = append(older, storedSlot{head: h, data: data})
		}
	}
	return older, nil
}

// olderConfig returns the newest version of the config that can be opened.
func olderConfig(ctx context.Context, objects object.Store, keys *seal.Keys) ([]byte, error) {
	k, ok := object.VersionedOf(objects)
	if !ok {
		return nil, object.ErrNotFound
	}
	var ids []string
	if err := k.ListVersions(ctx, configName, func(v object.Version) error {
		if v.Name == configName && !v.Deleted {
			ids = append(ids, v.ID)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for _, id := range ids {
		data, err := k.GetVersion(ctx, configName, id, 0, -1)
		if err != nil {
			continue
		}
		if head, err := openConfig(keys, data); err == nil {
			return head, nil
		}
	}
	return nil, object.ErrNotFound
}

// SoundKey reports whether data is a key slot or config of this repository and
// matches the name that it is stored under.
func (r *Repository) SoundKey(name string, data []byte) bool {
	if name == configName {
		_, err := openConfig(r.keys, data)
		return err == nil
	}
	h, err := slot.ReadHead(data)
	return err == nil && h.Repository == r.ID() && strings.HasSuffix(name, "/"+h.ID)
}
