package main

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"
)

// TestPullerPullsFromTheHub drives the hub's process in this one, by the lines
// that it is told.
func TestPullerPullsFromTheHub(t *testing.T) {
	in, orders := io.Pipe()
	answers, out := io.Pipe()
	s := sizes{Large: 1 << 20, Medium: 1000, Small: 100, Layers: 7, Tiny: 3}
	arg, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serveHub([]string{string(arg)}, in, out) }()
	h := hubProcess{orders: orders, answers: json.NewDecoder(answers)}
	if err := h.answers.Decode(&h.hubOpening); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ref    imageRef
		layers int64
	}{
		{h.Stock.Image, s.Large + 4*s.Medium},
		{h.Stock.Many, 7 * s.Small},
	} {
		before, err := h.counts()
		if err != nil {
			t.Fatal(err)
		}
		p := newPuller(h.Full.URL)
		if err := p.image(t.Context(), c.ref, 3); err != nil {
			t.Fatalf("%s: %v", c.ref.Repository, err)
		}
		p.close()
		// What was received may not be counted yet.
		var sent int64
		for deadline := time.Now().Add(time.Minute); sent < c.ref.Bytes && time.Now().Before(deadline); {
			after, err := h.counts()
			if err != nil {
				t.Fatal(err)
			}
			sent = after.Bytes - before.Bytes
		}
		if sent != c.ref.Bytes || sent <= c.layers {
			t.Errorf("%s: the hub has sent %d bytes, the image has %d, its layers %d", c.ref.Repository, sent, c.ref.Bytes, c.layers)
		}
		wrong := c.ref
		wrong.Bytes++
		if err := newPuller(h.Plain.URL).image(t.Context(), wrong, 3); err == nil {
			t.Errorf("%s: an image that lacks a byte was taken", c.ref.Repository)
		}
	}
	// The other hub wants no token, and has it all too.
	for _, i := range append(h.Stock.Tiny, h.Stock.Tag, h.Stock.ByDigest, h.Stock.OneLarge, h.Stock.OneMedium, h.Stock.Large, h.Stock.Medium, h.Stock.Small) {
		p := newPuller(h.Plain.URL)
		if _, err := p.blob(t.Context(), i); err != nil {
			t.Error(err)
		}
		p.close()
	}
	// So has the one that is far away, over HTTP/2.
	p := newFarPuller(h.Far.URL, h.Far.CA)
	defer p.close()
	if err := p.login(t.Context(), h.Stock.Medium.Repository); err != nil {
		t.Fatal(err)
	}
	if _, err := p.blob(t.Context(), h.Stock.Medium); err != nil {
		t.Error(err)
	}
	if res, err := p.do(t.Context(), http.MethodGet, h.Far.URL+"/v2/"); err != nil || res.ProtoMajor != 2 {
		t.Errorf("got %+v, %v; want an answer over HTTP/2", res, err)
	} else {
		_ = res.Body.Close()
	}
	if err := orders.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the hub ended with %v", err)
	}
}
