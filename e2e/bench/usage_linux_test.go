package main

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

func TestParentIsReadBehindTheName(t *testing.T) {
	for _, c := range []struct {
		stat string
		want int
		ok   bool
	}{
		{"12 (nginx) S 7 12 12 0", 7, true},
		{"12 (a (b) c) R 9) S 8 1", 8, true},
		{"12 (nginx) S", 0, false},
		{"", 0, false},
	} {
		if got, ok := parentIn([]byte(c.stat)); got != c.want || ok != c.ok {
			t.Errorf("%q: want %d, %v, got %d, %v", c.stat, c.want, c.ok, got, ok)
		}
	}
}

func TestBusyTimeLeavesIdlingOut(t *testing.T) {
	got := busyIn([]byte("cpu  100 20 3 5000 4000 6 7 8 900 10\ncpu0 1 1 1 1\n"))
	if want := 1440 * time.Millisecond; got != want {
		t.Errorf("want %s, got %s", want, got)
	}
}

func TestUsageIsThatOfTheProcessAndItsChildren(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	}()
	own := os.Getpid()
	if f := family(own); !slices.Contains(f, own) || !slices.Contains(f, sleep.Process.Pid) {
		t.Errorf("want %d and %d, got %v", own, sleep.Process.Pid, f)
	}
	before := cpuTime(own)
	for deadline := time.Now().Add(time.Minute); cpuTime(own) < before+time.Millisecond; {
		if time.Now().After(deadline) {
			t.Fatalf("a minute of work has cost %s", cpuTime(own)-before)
		}
	}
	if all, mine := resident(own); all < 1<<20 || all > 1<<40 || mine <= 0 || mine >= all {
		t.Errorf("%d bytes resident, %d of them its own", all, mine)
	}
	if all, _ := resident(sleep.Process.Pid); all == 0 {
		t.Error("sleep has nothing resident")
	}
}

func TestResidentMemoryIsReadFromPages(t *testing.T) {
	if all, own := residentIn([]byte("900 100 30 1 0 50 0\n"), 4096); all != 409600 || own != 286720 {
		t.Errorf("want 409600 and 286720, got %d and %d", all, own)
	}
	if all, own := residentIn([]byte("900 x"), 4096); all != 0 || own != 0 {
		t.Errorf("nonsense: got %d and %d", all, own)
	}
}
