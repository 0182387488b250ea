package repo

import (
	"context"
	"slices"
)

// Kinds of notes that add a tag to a snapshot or remove it; the tag is the note's
// text.
const (
	NoteTag   = "tag"
	NoteUntag = "untag"
)

// Tag applies the tag notes to the tags of the snapshots. notes must be oldest
// first, as Notes returns them.
func Tag(all []*Snapshot, notes []*Note) {
	byID := make(map[string]*Snapshot)
	for _, n := range notes {
		if n.Kind != NoteTag && n.Kind != NoteUntag {
			continue
		}
		if len(byID) == 0 {
			for _, s := range all {
				byID[s.id] = s
			}
		}
		s := byID[n.Snapshot]
		if s == nil {
			continue
		}
		i := slices.Index(s.Tags, n.Text)
		switch {
		case n.Kind == NoteTag && i < 0:
			s.Tags = append(slices.Clip(s.Tags), n.Text)
		case n.Kind == NoteUntag && i >= 0:
			s.Tags = slices.Delete(slices.Clone(s.Tags), i, i+1)
		}
	}
}

// ApplyTags is Tag with all notes that can be read; the others are returned as
// problems.
func (r *Repository) ApplyTags(ctx context.Context, all []*Snapshot) ([]Problem, error) {
	notes, bad, err := r.Notes(ctx)
	if err == nil {
		Tag(all, notes)
	}
	return bad, err
}

// HasTags reports whether a snapshot has all of these tags.
func (s *Snapshot) HasTags(tags []string) bool {
	return !slices.ContainsFunc(tags, func(t string) bool { return !slices.Contains(s.Tags, t) })
}
