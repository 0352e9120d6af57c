package upstream

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// A registry that wants a login sends pieces from a store by signed URLs. The first piece of
// a blob asks the registry, the next ones the store alone: for a short while, for that
// repository and that login, and never with the login.
func TestPiecesOfOneBlobComeFromWhereTheRegistrySentTheFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		signed, expired := 0, ""
		var store http.HandlerFunc = func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "" {
				t.Error("the login went to the store")
			}
			if req.URL.Query().Get("sig") == expired {
				rw.WriteHeader(http.StatusForbidden)
				return
			}
			part("bytes 4-8/20", layer[4:9])(rw, req)
		}
		w.host("cdn.test:443", func(rw http.ResponseWriter, req *http.Request) { store(rw, req) })
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if user, _, _ := req.BasicAuth(); user == "" {
				rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			signed++
			redirectTo(fmt.Sprintf("https://cdn.test/x?sig=%d", signed))(rw, req)
		})
		r := w.registry(Options{Accounts: []Account{
			{Match: func(repo string) bool { return repo == "b" }, Credentials: StaticCredentials(Credential{Username: "two", Password: "p"})},
			{Match: func(string) bool { return true }, Credentials: StaticCredentials(Credential{Username: "one", Password: "p"})},
		}})
		// piece reads a piece and says how often the registry was asked for it.
		piece := func(repo string, d digest.Digest, who Credentials) int {
			t.Helper()
			before := signed
			ctx := t.Context()
			a := r.blobAsk("blob", http.MethodGet, repo, d)
			a.bulk, a.who, a.span = true, who, &oci.Span{From: 4, To: 9}
			if who == nil {
				b, err := r.Blob(ctx, repo, d, *a.span)
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				if got, err := io.ReadAll(b); err != nil || string(got) != layer[4:9] || b.Span != *a.span {
					t.Errorf("got %q as %v, %v; want the piece", got, b.Span, err)
				}
			} else if f := r.put(ctx, a, func(*answer) *failure { return nil }); f != nil {
				t.Fatal(f.err)
			}
			return signed - before
		}
		other := digest.FromString("another layer")
		for n, want := range []int{1, 0, 0, 0} {
			if got := piece("a", layerDigest, nil); got != want {
				t.Errorf("piece %d: %d requests to the registry, want %d", n, got, want)
			}
		}
		for name, got := range map[string]int{
			"another blob":       piece("a", other, nil),
			"another repository": piece("b", layerDigest, nil),
			"another login":      piece("a", layerDigest, StaticCredentials(Credential{Username: "three", Password: "p"})),
		} {
			if got != 1 {
				t.Errorf("%s: %d requests to the registry, want 1", name, got)
			}
		}

		// A URL that the store refuses is asked for anew, whatever the store says.
		good := store
		for _, code := range []int{http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusServiceUnavailable, http.StatusOK} {
			old := fmt.Sprint(signed + 1)
			time.Sleep(shortcutTime)
			if got := piece("a", layerDigest, nil); got != 1 {
				t.Errorf("after %v: %d requests to the registry, want 1", shortcutTime, got)
			}
			store = func(rw http.ResponseWriter, req *http.Request) {
				if req.URL.Query().Get("sig") != old {
					good(rw, req)
				} else if code == http.StatusOK {
					part("bytes 0-4/20", layer[:5])(rw, req) // not what was asked for
				} else {
					rw.WriteHeader(code)
				}
			}
			if one, two := piece("a", layerDigest, nil), piece("a", layerDigest, nil); one != 1 || two != 0 {
				t.Errorf("after %d from the store: %d and %d requests to the registry, want 1 and 0", code, one, two)
			}
		}

		// What comes at length asks the registry each time.
		store = func(rw http.ResponseWriter, _ *http.Request) { serveLayer(rw, nil) }
		for range 2 {
			before := signed
			b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
			if err != nil {
				t.Fatal(err)
			}
			_ = b.Close()
			if signed != before+1 {
				t.Errorf("a whole blob: %d requests to the registry, want 1", signed-before)
			}
		}
	})
}

// The URLs that are remembered are bounded.
func TestNoMoreThanSoManyShortcutsAreRemembered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		long := false
		w.host("cdn.test:443", part("bytes 4-8/20", layer[4:9]))
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			at := "https://cdn.test/x"
			if long {
				at = fmt.Sprintf("%s?sig=%0*d", at, maxShortcutURL, 1)
			}
			redirectTo(at)(rw, req)
		})
		r := w.registry(Options{})
		read := func(d digest.Digest) {
			t.Helper()
			b, err := r.Blob(t.Context(), "a", d, oci.Span{From: 4, To: 9})
			if err != nil {
				t.Fatal(err)
			}
			_ = b.Close()
		}
		for n := range 2*maxShortcuts + 1 {
			read(digest.FromString(fmt.Sprint(n)))
			if got := len(r.shortcuts.of); got == 0 || got > maxShortcuts {
				t.Fatalf("after %d blobs %d are remembered, want 1 to %d", n+1, got, maxShortcuts)
			}
		}
		before := len(r.shortcuts.of)
		long = true
		read(layerDigest)
		if got := len(r.shortcuts.of); got != before {
			t.Errorf("a URL of more than %d bytes is remembered", maxShortcutURL)
		}
	})
}
