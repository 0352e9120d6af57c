package upstream

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnExchangedRegistryAnswersThoseWhoHaveAskedIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, name := range []string{"old", "new"} {
			w.host(name+".test:443", func(rw http.ResponseWriter, r *http.Request) {
				if name == "old" && r.URL.Path != "/v2/" {
					time.Sleep(5 * time.Second)
				}
				rw.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(rw, `{"name": "a", "tags": [%q]}`, name)
			})
		}
		old, fresh := w.registry(Options{Endpoints: []string{"https://old.test"}}), w.registry(Options{Endpoints: []string{"https://new.test"}})
		l := NewLive(old)
		defer l.Close()
		type answer struct {
			tags []string
			err  error
		}
		first := make(chan answer, 1)
		go func() {
			tags, err := l.Tags(t.Context(), "a")
			first <- answer{tags, err}
		}()
		synctest.Wait()
		l.Exchange(fresh)
		synctest.Wait()
		if old.life.Err() != nil {
			t.Error("the old one is closed while somebody waits for its answer")
		}
		if tags, err := l.Tags(t.Context(), "a"); err != nil || len(tags) != 1 || tags[0] != "new" {
			t.Errorf("after the exchange: %v, %v", tags, err)
		}
		if a := <-first; a.err != nil || len(a.tags) != 1 || a.tags[0] != "old" {
			t.Errorf("asked before the exchange: %v, %v", a.tags, a.err)
		}
		synctest.Wait()
		if old.life.Err() == nil {
			t.Error("the old one is open though nobody waits for it")
		}
	})
}
