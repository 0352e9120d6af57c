package main

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// family gives a process and all below it.
func family(root int) []int {
	children := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return []int{root}
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		if parent, ok := parentIn(b); ok {
			children[parent] = append(children[parent], pid)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// parentIn reads the parent out of /proc/PID/stat, where it is the second word
// behind the name, which may hold blanks and brackets.
func parentIn(stat []byte) (int, bool) {
	_, rest, _ := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(" "))
	f := bytes.Fields(rest)
	if len(f) < 2 {
		return 0, false
	}
	parent, err := strconv.Atoi(string(f[1]))
	return parent, err == nil
}

// cpuTime is what a process has used, user and system, in all its threads: the
// kernel's own clock of it, exact to far below a tick.
func cpuTime(pid int) time.Duration {
	var ts unix.Timespec
	const sched = 2 // CPUCLOCK_SCHED of the process, not of a thread
	if unix.ClockGettime(int32(^pid<<3|sched), &ts) != nil {
		return 0 // it has ended
	}
	return time.Duration(ts.Nano())
}

// resident is what a process has in memory, in bytes, and what of it is its own:
// the rest is mapped from files, and the kernel's to take back.
func resident(pid int) (all, own int64) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0, 0 // it has ended
	}
	return residentIn(b, int64(os.Getpagesize()))
}

// residentIn reads /proc/PID/statm: size, resident and shared pages, and more.
func residentIn(statm []byte, page int64) (all, own int64) {
	f := bytes.Fields(statm)
	if len(f) < 3 {
		return 0, 0
	}
	pages, err := strconv.ParseInt(string(f[1]), 10, 64)
	shared, err2 := strconv.ParseInt(string(f[2]), 10, 64)
	if err != nil || err2 != nil {
		return 0, 0
	}
	return pages * page, (pages - shared) * page
}

// machineTime is the CPU time that everybody on this machine has used.
func machineTime() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	return busyIn(b)
}

// busyIn reads /proc/stat's first line: user, nice, system, idle, iowait, irq,
// softirq, steal, in hundredths of a second.
func busyIn(stat []byte) time.Duration {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	var ticks int64
	for i, f := range bytes.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
