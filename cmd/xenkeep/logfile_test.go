package main

import (
	"bytes"
	"strings"
	"testing"

	"xenkeep/job/config"
)

// A log on a full disk is reported on stderr once, and the error is returned at the
// end, for the report.
func TestLogOnFullDisk(t *testing.T) {
	var stderr bytes.Buffer
	log, end, err := logger(&config.Log{File: "/dev/full"}, &stderr)
	if err != nil {
		t.Skip(err)
	}
	log.Info("one")
	log.Info("two")
	if got := stderr.String(); strings.Count(got, "no space left") != 1 || !strings.HasPrefix(got, "xenkeep: warning: log: ") {
		t.Errorf("stderr: %q", got)
	}
	if err := end(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("the error at the end is %v", err)
	}
}
