package nightly

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// turns stores on this machine when a repository was last pruned and checked. If it is
// lost, these operations are repeated.
type turns struct {
	Prune time.Time `json:"prune,omitzero"`
	Check time.Time `json:"check,omitzero"`

	file string
}

func readTurns(dir, repository string) *turns {
	t := &turns{file: filepath.Join(dir, "turns-"+repository+".json")}
	if p, err := os.ReadFile(t.file); err == nil {
		if json.Unmarshal(p, t) != nil {
			*t = turns{file: t.file}
		}
	}
	return t
}

func (t *turns) save() error {
	p, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(t.file), 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(t.file, p, 0o600)
}
