package main

import (
	"os"
	"sync"
	"time"
)

// usage is what a subject has used while it was metered.
type usage struct {
	cpu time.Duration
	// peak is the most that it had resident, in bytes, all its processes added
	// up; own the same without what is mapped from files.
	peak, own int64
	// others is the part of the machine's CPUs that was used by whoever is not
	// part of the bench: what makes the figures rough.
	others float64
}

// meter measures a server while f runs. It may have no server: then only the
// others are seen.
func (b *bench) meter(s *server, f func() error) (usage, error) {
	var u usage
	var pids []int
	if s != nil {
		pids = s.pids
	}
	ours := append([]int{os.Getpid(), b.hub.cmd.Process.Pid}, pids...)
	done := make(chan struct{})
	var sampler sync.WaitGroup
	sampler.Go(func() {
		t := time.NewTicker(50 * time.Millisecond)
		defer t.Stop()
		for {
			var sum, ownSum int64
			for _, pid := range pids {
				all, own := resident(pid)
				sum += all
				ownSum += own
			}
			u.peak, u.own = max(u.peak, sum), max(u.own, ownSum)
			select {
			case <-t.C:
			case <-done:
				return
			}
		}
	})
	begin, machine, own, cpu := time.Now(), machineTime(), total(ours), total(pids)
	err := f()
	u.cpu = total(pids) - cpu
	elapsed := time.Since(begin)
	if m := machineTime() - machine; elapsed > 0 && m > 0 {
		capacity := elapsed * time.Duration(cpus())
		u.others = max(0, float64(m-(total(ours)-own))/float64(capacity))
	}
	close(done)
	sampler.Wait()
	return u, err
}

func total(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		sum += cpuTime(pid)
	}
	return sum
}
