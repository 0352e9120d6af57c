package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

// The hub is a process of its own, so that what it does is on nobody's account.
// It is this program, started with hubCommand and the sizes; it is told what to
// do by lines of JSON and answers each with one.
const hubCommand = "hub-process"

// hubOpening is the hub's first line: where it is and what it has.
type hubOpening struct {
	// Full is as strict as Docker Hub: tokens, and redirects to a CDN. Plain
	// wants no token and sends blobs itself, for subjects that could not pull
	// from the other.
	// Far is Full over TLS, with HTTP/2 offered; a shape bounds what each of its
	// connections sends, where it bounds each answer of the others.
	Full, Plain, Far hubAddress
	Stock            stock
}

type hubAddress struct {
	URL string
	// CA is the PEM of the certificate that signed the hub's; nil without TLS.
	CA []byte `json:",omitempty"`
	// Upstream is the value of Entrepot's upstreams.<name>.
	Upstream map[string]any
}

// hubOrder is what the hub is told. The zero value asks for the counts.
type hubOrder struct {
	// Shape sets the latency of each request, and the bandwidth of each
	// connection's blobs in bytes per second; zero is none.
	Shape bool          `json:",omitempty"`
	Delay time.Duration `json:",omitempty"`
	Rate  int64         `json:",omitempty"`
}

// hubCounts is the answer to an order: what both hubs were asked since they were
// started.
type hubCounts struct {
	Requests int64
	// Bytes are those of blobs.
	Bytes int64
}

// serveHub is the hub's process. It ends when nobody is left to tell it
// anything.
func serveHub(args []string, in io.Reader, out io.Writer) error {
	var s sizes
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &s) != nil {
		return errors.New("the hub's process is started by the benchmark only")
	}
	content := makeStock(s)
	hubs := make([]*hub.Hub, 3)
	for i, o := range []hub.Options{{URLTTL: time.Hour, TokenTTL: time.Hour}, {Auth: hub.Open, NoCDN: true}, {URLTTL: time.Hour, TokenTTL: time.Hour, TLS: true, HTTP2: true}} {
		h, err := hub.Start(o)
		if err != nil {
			return err
		}
		defer h.Close()
		for name, i := range content.images {
			h.Push(name, tag, i)
		}
		for d, b := range content.tiny {
			h.PushBlob(tinyRepo, d, b)
		}
		hubs[i] = h
	}
	answers := json.NewEncoder(out)
	if err := answers.Encode(hubOpening{Full: addressOf(hubs[0]), Plain: addressOf(hubs[1]), Far: addressOf(hubs[2]), Stock: content.stock}); err != nil {
		return err
	}
	orders := json.NewDecoder(in)
	for {
		var order hubOrder
		if err := orders.Decode(&order); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var sum hubCounts
		for _, h := range hubs {
			if order.Shape {
				h.Mend()
				if order.Delay > 0 {
					h.Inject(hub.Delay(hub.Any, order.Delay))
				}
				if h == hubs[2] {
					h.Shape(order.Rate)
				} else if order.Rate > 0 {
					h.Inject(hub.Slow(order.Rate))
				}
			}
			c := h.Counts()
			sum.Requests += c.Total()
			sum.Bytes += c.CDNBytes
		}
		if err := answers.Encode(sum); err != nil {
			return err
		}
	}
}

func addressOf(h *hub.Hub) hubAddress {
	return hubAddress{URL: h.URL(), CA: h.CA(), Upstream: h.Upstream("")}
}

// hubProcess is the running hub. Its methods are for one goroutine.
type hubProcess struct {
	hubOpening
	cmd     *exec.Cmd
	orders  io.WriteCloser
	answers *json.Decoder
}

// startHub starts the hub and waits until it has made its content.
func startHub(s sizes) (*hubProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	arg, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	h := &hubProcess{cmd: exec.Command(self, hubCommand, string(arg))}
	// Its gigabytes are there for good: collecting often would only cost time.
	h.cmd.Env = append(os.Environ(), "GOGC=400", "GOMEMLIMIT="+strconv.FormatInt(2*(s.Large+4*s.Medium)+1<<30, 10))
	h.cmd.Stderr = os.Stderr
	if h.orders, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the hub: %w", err)
	}
	h.answers = json.NewDecoder(bufio.NewReader(out))
	if err := h.answers.Decode(&h.hubOpening); err != nil {
		return nil, errors.Join(fmt.Errorf("start the hub: %w", err), h.close())
	}
	return h, nil
}

func (h *hubProcess) tell(o hubOrder) (hubCounts, error) {
	var c hubCounts
	if err := json.NewEncoder(h.orders).Encode(o); err != nil {
		return c, fmt.Errorf("tell the hub: %w", err)
	}
	if err := h.answers.Decode(&c); err != nil {
		return c, fmt.Errorf("hear from the hub: %w", err)
	}
	return c, nil
}

// shape sets latency and bandwidth; zero is none.
func (h *hubProcess) shape(delay time.Duration, bytesPerSecond int64) error {
	_, err := h.tell(hubOrder{Shape: true, Delay: delay, Rate: bytesPerSecond})
	return err
}

func (h *hubProcess) counts() (hubCounts, error) { return h.tell(hubOrder{}) }

func (h *hubProcess) close() error {
	return errors.Join(h.orders.Close(), h.cmd.Wait())
}
