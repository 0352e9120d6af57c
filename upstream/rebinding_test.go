package upstream

import (
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

// nameServer is a DNS server in memory that says of every name what it is told to.
type nameServer struct {
	mu    sync.Mutex
	addrs []netip.Addr
	asked int
}

func (s *nameServer) say(addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = nil
	for _, a := range addrs {
		s.addrs = append(s.addrs, netip.MustParseAddr(a))
	}
}

// resolver gives one that asks s only.
func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe() // no PacketConn: so DNS over TCP, each message after its length
		go func() {
			defer theirs.Close()
			for s.answer(theirs) == nil {
			}
		}()
		return ours, nil
	}}
}

func (s *nameServer) answer(c net.Conn) error {
	var n [2]byte
	if _, err := c.Read(n[:]); err != nil {
		return err
	}
	q := make([]byte, binary.BigEndian.Uint16(n[:]))
	for got := 0; got < len(q); {
		m, err := c.Read(q[got:])
		if err != nil {
			return err
		}
		got += m
	}
	end := 12
	for q[end] != 0 {
		end += int(q[end]) + 1
	}
	end += 5 // the root label, type and class
	kind := binary.BigEndian.Uint16(q[end-4:])
	res := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end]...)
	s.mu.Lock()
	s.asked++
	for _, a := range s.addrs {
		if raw := a.AsSlice(); (kind == 1 && a.Is4()) || (kind == 28 && a.Is6()) {
			res[7]++
			res = append(res, 0xc0, 12, byte(kind>>8), byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(len(raw)))
			res = append(res, raw...)
		}
	}
	s.mu.Unlock()
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(res))), res...))
	return err
}

// The address that counts is the one that is about to be dialled, whatever the
// name stood for when it was last looked up.
func TestANameThatChangesItsMindIsNotDialled(t *testing.T) {
	var asked atomic.Int32
	inside := listen(t, func(w http.ResponseWriter, req *http.Request) { asked.Add(1); serveLayer(w, req) })
	names := &nameServer{}
	r := open(t, Options{Endpoints: []string{"https://registry.invalid"}})
	r.routes.strangers.shared.DialContext = (&net.Dialer{ControlContext: r.routes.control, Resolver: names.resolver()}).DialContext
	u := mustURL(t, inside.URL)
	u.Host = "rebind.test:" + u.Port()
	ask := func() error {
		res, err := r.routes.roundTrip((&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}}).WithContext(t.Context()))
		if err == nil {
			res.Body.Close()
			r.routes.close() // the next request dials again
		}
		return err
	}

	r.routes.inside.Store(uint32(loopback)) // the endpoint is there
	names.say("127.0.0.1")
	if err := ask(); err != nil || asked.Load() != 1 {
		t.Fatalf("a store beside the registry: %v, asked %d times; the test needs it to answer", err, asked.Load())
	}
	for _, addrs := range [][]string{{"10.0.0.1"}, {"169.254.169.254"}, {"::ffff:10.0.0.1"}, {"64:ff9b::a00:1"}, {"fd00::1", "100.64.0.1"}, {"0.0.0.0"}, {"::"}, {"224.0.0.1"}} {
		names.say(addrs...)
		err := ask()
		if err == nil {
			t.Fatalf("%v was dialled", addrs)
		}
		wantError(t, r.broken(t.Context(), u.Host, err).err, oci.CodeUnavailable, 502, "rebind.test", "upstreams.reg.redirect_hosts")
	}

	r.routes.inside.Store(0)
	names.say("127.0.0.1", "::1")
	if err := ask(); err == nil {
		t.Fatal("the loopback was dialled, where the endpoint is not")
	}
	if asked.Load() != 1 {
		t.Errorf("the host inside was asked %d times, want once", asked.Load())
	}
	if names.asked < 18 { // A and AAAA of each
		t.Errorf("the name server was asked %d times: the test shows nothing", names.asked)
	}
}
