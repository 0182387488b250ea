package cpu

import (
	"bytes"
	"os"
	"strconv"
	"time"
)

// tick is the unit of /proc/stat, USER_HZ, which is the same on all architectures
// that Go supports.
const tick = 10 * time.Millisecond

// Read returns the times of this machine, from /proc/stat (proc(5)). Within a
// container they are those of its host.
func Read() Times {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Times{}
	}
	return parse(data)
}

// parse reads the first line: "cpu user nice system idle iowait irq softirq steal
// guest guest_nice". The time of guests is contained in user and nice.
func parse(data []byte) Times {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 5 || string(fields[0]) != "cpu" {
		return Times{}
	}
	var t Times
	for i, f := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return Times{}
		}
		t.Total += time.Duration(n) * tick
		if i == 3 || i == 4 {
			t.Idle += time.Duration(n) * tick
		}
	}
	return t
}
