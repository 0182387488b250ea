package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"xenkeep/bench/measure"
)

func spent(wall time.Duration, anon int64) cost {
	return cost{Usage: measure.Usage{Wall: wall, CPU: wall / 2, PeakRSS: anon, PeakAnon: anon}}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{100, 1, 2, 3, 4}, 3}} {
		if got := median(c.of); got != c.want {
			t.Errorf("median of %v: %v, want %v", c.of, got, c.want)
		}
	}
}

// TestTargetsComeFromResults uses known figures for each tool.
func TestTargetsComeFromResults(t *testing.T) {
	var r results
	thin := func(op, tool string, wall time.Duration, size int64) {
		r.add("thin", step{op: op, data: 1 << 30}, tool, spent(wall, 300<<20), size, 0.1)
	}
	for _, wall := range []time.Duration{9, 3, 30} { // the median is 9
		thin(opFull, "xenkeep", wall*time.Second, 1000)
		thin(opFull, "restic", 30*time.Second, 1100)
	}
	thin(opDayTwo, "xenkeep", 7*time.Second, 1050)
	thin(opDayTwo, "restic", 30*time.Second, 1200)
	thin(opOther, "xenkeep", time.Second, 1400)
	thin(opOther, "restic", time.Second, 1500)
	want := map[string]target{
		"thin disk, full backup, wall time":          {Value: 0.3, Met: true},
		"thin disk, day two, wall time":              {Value: 7.0 / 30, Met: false},
		"thin disk, two days and second VM, size":    {Value: 1400.0 / 1500, Met: false},
		"thin disk, day two, growth":                 {Value: 0.5, Met: false},
		"peak anonymous memory of xenkeep, all runs": {Value: 300, Met: true},
	}
	all := r.targets()
	for _, got := range all {
		w, ok := want[got.Name]
		if !ok {
			t.Errorf("%s: a verdict on what was not measured: %+v", got.Name, got)
			continue
		}
		if d := got.Value - w.Value; d*d > 1e-12 || got.Met != w.Met {
			t.Errorf("%s: %v, met %v; want %v, %v", got.Name, got.Value, got.Met, w.Value, w.Met)
		}
		delete(want, got.Name)
	}
	if len(want) > 0 {
		t.Errorf("no verdict on %v", want)
	}
	var b bytes.Buffer
	if writeTargets(&b, all) || strings.Count(b.String(), "MISSED") != 3 || strings.Count(b.String(), "MET") != 2 {
		t.Errorf("verdicts:\n%s", &b)
	}
	b.Reset()
	r.write(&b)
	if !strings.Contains(b.String(), "0.300") || !strings.Contains(b.String(), "3.00..30.00") {
		t.Errorf("tables:\n%s", &b)
	}
}

func TestSlowChildStoresAll(t *testing.T) {
	t.Chdir(t.TempDir())
	var b bytes.Buffer
	if err := runSlowChild(t.Context(), "5000000", &b); err != nil {
		t.Fatal(err)
	}
	var s slowOutcome
	if err := json.Unmarshal(b.Bytes(), &s); err != nil || s.Stored < 5_000_000 {
		t.Errorf("stored %d (%v)", s.Stored, err)
	}
}
