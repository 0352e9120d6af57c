package server

import (
	"net"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/entrepot-dev/entrepot/oci"
)

// door counts the open connections, in all and by address. It is asked once for each
// connection, not for each request.
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

// enter counts a connection of an address (fair.Origin) in, or says why it must not be.
// The zero Addr is counted in the sum only. Whoever was let in calls leave with the same
// address, once.
func (d *door) enter(from netip.Addr) *oci.Error {
	d.mu.Lock()
	defer d.mu.Unlock()
	counted := d.from != nil && from.IsValid()
	switch {
	case counted && d.from[from] >= d.mostOfAddress:
		return errTooManyOfAddress
	case d.in >= d.most:
		return errTooManyConnections
	}
	d.in++
	if counted {
		d.from[from]++
	}
	d.gauge.Inc()
	return nil
}

// leave counts a connection out.
func (d *door) leave(from netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in--
	d.gauge.Dec()
	if d.from == nil || !from.IsValid() {
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
