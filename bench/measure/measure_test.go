package measure

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test's own binary serve as the program that is measured.
func TestMain(m *testing.M) {
	switch os.Getenv("MEASURE_TEST") {
	case "":
		os.Exit(m.Run())
	case "fail":
		fmt.Fprintln(os.Stderr, "it went wrong")
		os.Exit(3)
	}
	p := make([]byte, 96<<20)
	for i := range p {
		p[i] = byte(i)
	}
	for start := time.Now(); time.Since(start) < 150*time.Millisecond; {
		p[0]++
	}
	fmt.Println("done", p[0] > 0)
	os.Exit(0)
}

func TestRunMeasures(t *testing.T) {
	out, u, err := Run(t.Context(), Command{Args: []string{os.Args[0]}, Env: []string{"MEASURE_TEST=burn"}})
	if err != nil || !strings.HasPrefix(string(out), "done") {
		t.Fatalf("%q, %v", out, err)
	}
	if u.Wall < 150*time.Millisecond || u.CPU < 50*time.Millisecond || u.CPU > 4*u.Wall {
		t.Errorf("wall %v, CPU %v", u.Wall, u.CPU)
	}
	const most = 512 << 20
	if u.PeakAnon < 96<<20 || u.PeakAnon > most || u.PeakRSS < u.PeakAnon || u.PeakRSS > most {
		t.Errorf("peaks of %d MiB, %d MiB anonymous; 96 MiB were touched", u.PeakRSS>>20, u.PeakAnon>>20)
	}
}

func TestRunTellsWhatAProgramSaid(t *testing.T) {
	_, _, err := Run(t.Context(), Command{Args: []string{os.Args[0]}, Env: []string{"MEASURE_TEST=fail"}})
	if err == nil || !strings.Contains(err.Error(), "it went wrong") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
}

func TestCPUOfThisProcess(t *testing.T) {
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for start := time.Now(); time.Since(start) < 100*time.Millisecond; n++ {
	}
	if after, err := CPU(os.Getpid()); err != nil || after <= before {
		t.Errorf("CPU went from %v to %v (%v)", before, after, err)
	}
}
