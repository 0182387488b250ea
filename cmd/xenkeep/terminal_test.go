package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"xenkeep/internal/text"
)

// pty is a terminal of some size, and the bytes written to it.
type pty struct {
	master, slave *os.File
	cols, rows    int
	out           bytes.Buffer
	over          chan struct{}
}

func openPTY(cols, rows int) (*pty, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(cols), Row: uint16(rows)})
	}
	if err != nil {
		return nil, errors.Join(err, master.Close())
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, errors.Join(err, master.Close())
	}
	p := &pty{master: master, slave: slave, cols: cols, rows: rows, over: make(chan struct{})}
	go func() {
		defer close(p.over)
		_, _ = io.Copy(&p.out, p.master) // ends with EIO once the other side is closed
	}()
	return p, nil
}

// close ends the terminal and returns all that was written to it.
func (p *pty) close() []byte {
	_ = p.slave.Close()
	<-p.over
	_ = p.master.Close()
	return p.out.Bytes()
}

// emulate returns the lines that a terminal shows after it received some bytes,
// including lines that were scrolled away. It implements the sequences that are used.
func emulate(out []byte, cols, rows int) ([]string, error) {
	var lines [][]string // cells; a wide character leaves the next one empty
	top, y, x := 0, 0, 0 // top: the first line of the screen
	down := func() {
		if y++; y-top >= rows {
			top++
		}
	}
	put := func(r rune) {
		w := text.Width(string(r))
		if w > 0 && x+w > cols {
			x = 0
			down()
		}
		for len(lines) <= y {
			lines = append(lines, nil)
		}
		for len(lines[y]) < x+w {
			lines[y] = append(lines[y], " ")
		}
		if w == 0 {
			if x > 0 {
				lines[y][x-1] += string(r)
			}
			return
		}
		lines[y][x] = string(r)
		if w == 2 {
			lines[y][x+1] = ""
		}
		x += w
	}
	for len(out) > 0 {
		r, n := utf8.DecodeRune(out)
		switch {
		case r == '\r':
			x = 0
		case r == '\n':
			down()
		case r == '\x1b':
			end := bytes.IndexAny(out, "ABCDHJKhlm")
			if end < 0 || out[1] != '[' {
				return nil, fmt.Errorf("sequence %q", out[:min(len(out), 10)])
			}
			arg, err := strconv.Atoi(string(out[2:end]))
			switch c := out[end]; {
			case c == 'A' && err == nil:
				y = max(y-arg, top)
			case c == 'K' && end == 2:
				if y < len(lines) {
					lines[y] = lines[y][:min(x, len(lines[y]))]
				}
			case c == 'J' && end == 2:
				if y < len(lines) {
					lines[y] = lines[y][:min(x, len(lines[y]))]
					lines = lines[:y+1]
				}
			default:
				return nil, fmt.Errorf("sequence %q", out[:end+1])
			}
			n = end + 1
		case r < ' ':
			return nil, fmt.Errorf("control character %q", r)
		default:
			put(r)
		}
		out = out[n:]
	}
	var shown []string
	for _, l := range lines {
		shown = append(shown, strings.TrimRight(strings.Join(l, ""), " "))
	}
	for len(shown) > 0 && shown[len(shown)-1] == "" {
		shown = shown[:len(shown)-1]
	}
	return shown, nil
}

// shownByTmux passes the bytes to another terminal, to check emulate; it returns nil
// if there is none.
func shownByTmux(t *testing.T, out []byte, cols, rows int, want []string) {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Log("no tmux to compare with (Debian package tmux)")
		return
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "out")
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	tmux := func(args ...string) ([]byte, error) {
		cmd := exec.Command("tmux", append([]string{"-f", "/dev/null", "-u", "-S", filepath.Join(dir, "socket")}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm", "TMUX=")
		return cmd.CombinedOutput()
	}
	// The bytes have the carriage returns of the first terminal already.
	if out, err := tmux("new-session", "-d", "-x", strconv.Itoa(cols), "-y", strconv.Itoa(rows), "stty -opost; cat "+file+"; sleep 600"); err != nil {
		t.Fatalf("tmux: %v\n%s", err, out)
	}
	defer func() { _, _ = tmux("kill-server") }()
	var got string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		p, err := tmux("capture-pane", "-p", "-S", "-")
		if err != nil {
			t.Fatalf("tmux: %v\n%s", err, p)
		}
		if got = strings.TrimRight(string(p), "\n "); got == strings.Join(want, "\n") {
			return
		}
	}
	t.Errorf("tmux shows:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
}

// onTerminal draws progress on a terminal and returns the lines that it shows.
func onTerminal(t *testing.T, ctx context.Context, cols, rows int, play func(tr *tracker, step func(time.Duration))) []string {
	t.Helper()
	p, err := openPTY(cols, rows)
	if err != nil {
		t.Skipf("SKIP: no terminal: %v", err)
	}
	now := time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC)
	tr := &tracker{ctx: ctx, w: p.slave, now: func() time.Time { return now }, screen: &screen{size: func() (int, int) { return terminalSize(p.slave) }}}
	play(tr, func(d time.Duration) { now = now.Add(d); tr.draw() })
	out := p.close()
	shown, err := emulate(out, cols, rows)
	if err != nil {
		t.Fatalf("%v\n%q", err, out)
	}
	shownByTmux(t, out, cols, rows, shown)
	return shown
}

const mebi = 1 << 20

var longNames = []string{"web", "production-database-server-of-the-northern-branch-07-replica-do-not-delete-before-2027", "データベース本番サーバー", "e\u0301te\u0301", "a\x1b[31mb"}

// Row N21 of the fault list: with any names, bar, rate and time left
// stay on the line, the columns are aligned, and only the name is shortened.
func TestBarsOfAnyName(t *testing.T) {
	for _, cols := range []int{40, 80, 200} {
		t.Run(strconv.Itoa(cols), func(t *testing.T) {
			shown := onTerminal(t, t.Context(), cols, 24, func(tr *tracker, step func(time.Duration)) {
				for i, name := range longNames {
					m := tr.Begin(name+" xvda", 700*mebi)
					m.Add(int64(i+1) * 50 * mebi)
				}
				step(10 * time.Second)
				step(10 * time.Second)
			})
			if len(shown) != len(longNames) {
				t.Fatalf("%d lines:\n%s", len(shown), strings.Join(shown, "\n"))
			}
			column := -1
			for i, l := range shown {
				if text.Width(l) >= cols {
					t.Errorf("line of %d columns: %s", text.Width(l), l)
				}
				for _, want := range []string{" of 700 MiB ", " MiB/s ", "s"} {
					if cols >= 80 && !strings.Contains(l, want) {
						t.Errorf("no %q in %s", want, l)
					}
				}
				if cols < 80 {
					continue
				}
				at := text.Width(l[:max(strings.LastIndex(l, "["), 0)])
				if column < 0 {
					column = at
				}
				if at != column || at == 0 {
					t.Errorf("the bar begins in column %d, not %d: %s", at, column, l)
				}
				if !strings.Contains(l, "xvda ") {
					t.Errorf("no disk in %s", l)
				}
				if i == 1 && !strings.HasPrefix(l, "produc") {
					t.Errorf("no name in %s", l)
				}
			}
			t.Log("\n" + strings.Join(shown, "\n"))
		})
	}
}

// Row N21 of the fault list: a run over many VMs has one line for the whole,
// and VMs that are finished leave none.
func TestBarsOfManyVMs(t *testing.T) {
	for _, cols := range []int{80, 200} {
		var during string
		shown := onTerminal(t, t.Context(), cols, 24, func(tr *tracker, step func(time.Duration)) {
			sizes := make(map[string]int64)
			for i := range 30 {
				sizes[fmt.Sprint("u", i)] = 10 << 30
			}
			tr.Expect(sizes)
			for i := range 30 {
				vm := fmt.Sprint("u", i)
				tr.BeginVM(vm, 10<<30)
				m := tr.BeginDisk(vm, fmt.Sprintf("vm%d xvda", i), 10<<30, 100*mebi)
				m.Add(50 * mebi)
				step(10 * time.Second)
				if i == 12 {
					during = strings.Join(tr.frame(), "\n")
				}
				m.Add(50 * mebi)
				m.Done()
				tr.EndVM(vm)
				step(10 * time.Second)
			}
			tr.Close()
			fmt.Fprintln(tr.w, "the report")
		})
		if want := "12 of 30 VMs, 42 %, 6 min left"; !strings.HasSuffix(during, "\n"+want) || strings.Count(during, "\n") != 1 {
			t.Errorf("during the run:\n%s\nwant one bar and %s", during, want)
		}
		if len(shown) != 1 || shown[0] != "the report" {
			t.Errorf("%d columns, after it:\n%s", cols, strings.Join(shown, "\n"))
		}
	}
}

// More transfers than the terminal has lines do not scroll it.
func TestBarsOnSmallTerminal(t *testing.T) {
	shown := onTerminal(t, t.Context(), 80, 8, func(tr *tracker, step func(time.Duration)) {
		for i := range 20 {
			tr.Begin(fmt.Sprintf("vm%d xvda", i), mebi)
		}
		step(time.Second)
		step(time.Second)
		fmt.Fprintln(tr, "a warning")
		step(time.Second)
	})
	if len(shown) != 8 || shown[0] != "a warning" || shown[7] != "and 14 more" {
		t.Errorf("shown:\n%s", strings.Join(shown, "\n"))
	}
}

// Row N10 of the fault list: transfers that an interruption ends keep their total
// and are shown as stopped; transfers that had finished are not.
func TestBarsInterrupted(t *testing.T) {
	for _, cols := range []int{80, 200} {
		ctx, cancel := context.WithCancel(t.Context())
		shown := onTerminal(t, ctx, cols, 24, func(tr *tracker, step func(time.Duration)) {
			tr.Expect(map[string]int64{"u1": 1000 * mebi, "u2": 1000 * mebi})
			done := tr.BeginDisk("u1", "web xvda", 1000*mebi, 100*mebi)
			big := tr.BeginDisk("u2", "big xvda", 1000*mebi, 700*mebi)
			open := tr.BeginDisk("u2", "big xvdb", 1000*mebi, 0)
			step(time.Second)
			done.Add(100 * mebi)
			done.Done()
			tr.EndVM("u1")
			big.Add(38 * mebi)
			open.Add(3 * mebi)
			step(time.Second)
			cancel()
			big.Done()
			step(time.Second)
			tr.Close()
			tr.Close()
			open.Done()
		})
		want := "big xvda: 38 MiB of 700 MiB, stopped\nbig xvdb: 3.0 MiB, stopped\n1 of 2 VMs, 53 %, stopped"
		if got := strings.Join(shown, "\n"); got != want {
			t.Errorf("%d columns:\n%s\nwant:\n%s", cols, got, want)
		}
	}
}

// The same without a terminal: no control sequences, and the total.
func TestLinesInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	now := time.Unix(0, 0)
	tr := &tracker{ctx: ctx, w: &out, now: func() time.Time { return now }}
	tr.Expect(map[string]int64{"u1": 0, "u2": 0})
	tr.BeginVM("u1", 1000*mebi)
	m := tr.BeginDisk("u1", "web xvda", 1000*mebi, 100*mebi)
	m.Add(50 * mebi)
	now = now.Add(10 * time.Second)
	tr.list()
	cancel()
	m.Done()
	tr.Close()
	want := "web xvda: 50 MiB of 100 MiB, 5.0 MiB/s, 10s left\n0 of 2 VMs, 25 %, 30 s left\n" +
		"web xvda: 50 MiB of 100 MiB, stopped\n0 of 2 VMs, 25 %, stopped\n"
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out.String(), want)
	}
}

// terminal COLS FILE [INTERRUPT] -- COMMAND...: run a command on a terminal of
// COLS columns; FILE receives the text that it shows at the end. With INTERRUPT the command is
// sent SIGINT once that file exists. The exit code is in the variable CODE.
func cmdTerminal(ts *testscript.TestScript, neg bool, args []string) {
	sep := 0
	for sep < len(args) && args[sep] != "--" {
		sep++
	}
	if neg || sep < 2 || sep > 3 || len(args) < sep+2 {
		ts.Fatalf("usage: terminal COLS FILE [INTERRUPT] -- COMMAND...")
	}
	cols, err := strconv.Atoi(args[0])
	ts.Check(err)
	p, err := openPTY(cols, 50)
	ts.Check(err)
	cmd := command(ts, args[sep+1:]...)
	cmd.Env = append(cmd.Env, "TERM=xterm", "TZ=UTC", "NO_COLOR="+ts.Getenv("NO_COLOR"), "XENKEEP_POOL_USER="+ts.Getenv("XENKEEP_POOL_USER"),
		"XENKEEP_POOL_PASSWORD_SECRET="+ts.Getenv("XENKEEP_POOL_PASSWORD_SECRET"))
	cmd.Stdout, cmd.Stderr = p.slave, p.slave
	ts.Check(cmd.Start())
	over := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(over)
	}()
	deadline := time.After(5 * time.Minute)
	for running, sent := true, sep == 2; running; {
		select {
		case <-over:
			running = false
		case <-deadline:
			_ = cmd.Process.Kill()
			<-over
			ts.Fatalf("still runs; interrupted %v", sent)
		case <-time.After(5 * time.Millisecond):
			if sent {
				continue
			}
			if _, err := os.Stat(ts.MkAbs(args[2])); err == nil {
				sent = true
				ts.Check(cmd.Process.Signal(os.Interrupt))
			}
		}
	}
	ts.Setenv("CODE", strconv.Itoa(cmd.ProcessState.ExitCode()))
	shown, err := emulate(p.close(), cols, 50)
	ts.Check(err)
	for _, l := range shown {
		if text.Width(l) > cols {
			ts.Fatalf("line of %d columns: %s", text.Width(l), l)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.Join(shown, "\n")+"\n"), 0o600))
}
