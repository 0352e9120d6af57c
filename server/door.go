package server

import (
	"net"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/entrepot-dev/entrepot/oci"
)

// door counts who is in. It is asked once for each connection, not for each
// request.
type door struct {
	most, mostOfAddress int // the second is 0 where there is no such limit
	gauge               prometheus.Gauge

	mu   sync.Mutex
	in   int
	from map[netip.Addr]int // nil where addresses are not counted
}

func newDoor(most, mostOfAddress int, gauge prometheus.Gauge) *door {
	d := &door{most: most, mostOfAddress: mostOfAddress, gauge: gauge}
	if mostOfAddress > 0 {
		d.from = make(map[netip.Addr]int)
	}
	return d
}

// enter counts a connection in, or says why it may not be. Who was let in calls
// leave, once.
func (d *door) enter(from netip.Addr) *oci.Error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.from != nil && d.from[from] >= d.mostOfAddress:
		return errTooManyOfAddress
	case d.in >= d.most:
		return errTooManyConnections
	}
	d.in++
	if d.from != nil {
		d.from[from]++
	}
	d.gauge.Inc()
	return nil
}

func (d *door) leave(from netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in--
	d.gauge.Dec()
	if d.from == nil {
		return
	}
	if d.from[from]--; d.from[from] == 0 {
		delete(d.from, from)
	}
}

// addressOf gives a connection's client; the zero Addr where it has none.
func addressOf(c net.Conn) netip.Addr {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
