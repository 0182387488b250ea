package xapi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"xenkeep/internal/disk/disktest"
)

// Answers of a real host that are damaged at random are decoded, or refused,
// within the limits of time and memory.
func TestDamagedAtRandom(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no recordings: ", err)
	}
	inputs := [][]byte{golden(t, "export-embedded-500.txt")}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, data)
	}
	disktest.TryDamaged(t, 10_000, func(p []byte) {
		_, _ = ParseTaskResult(string(p))
		_ = ParseErrorPage(p)
		raw, err := decodeAnswer(p)
		if err != nil {
			_ = err.Error()
			return
		}
		var records map[Ref]json.RawMessage
		if json.Unmarshal(raw, &records) != nil {
			return
		}
		for ref, record := range records {
			_, _ = DecodeRecord[VM](ref, record)
			_, _ = DecodeRecord[VDI](ref, record)
			_, _ = DecodeRecord[SR](ref, record)
			_, _ = DecodeRecord[Host](ref, record)
		}
	}, inputs...)
}
