package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// Requests for ranges of a blob that isn't cached are answered whatever comes first: what is
// missing for an answer is fetched, and nobody waits for bytes that nobody fetches.
func TestRangesOfAColdBlobAreAnsweredInAnyOrder(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	h, p := start(t, "")
	for name, c := range map[string]struct {
		size int
		asks []string   // Range headers
		want []oci.Span // the span of each; none stands for a 416, or for all of nothing
	}{
		"behind the end":                    {size, []string{"bytes=1048576-", "bytes=1048577-1048580"}, []oci.Span{{}, {}}},
		"behind the end, and a byte":        {size, []string{"bytes=1048580-,9-9"}, []oci.Span{{From: 9, To: 10}}},
		"a suffix of nothing":               {size, []string{"bytes=-0"}, []oci.Span{{}}},
		"more than all":                     {size, []string{"bytes=-9999999"}, []oci.Span{{From: 0, To: size}}},
		"one that joins what is before it":  {size, []string{"bytes=501-,31-1012"}, []oci.Span{{From: 31, To: size}}},
		"one that begins beside a piece":    {size, []string{"bytes=600000-600099", "bytes=599990-700000"}, []oci.Span{{From: 600_000, To: 600_100}, {From: 599_990, To: 700_001}}},
		"several that are the whole":        {size, []string{"bytes=10719-259947,0-0,262143-327391,-1048576"}, []oci.Span{{From: 0, To: size}}},
		"all but the last bytes, backwards": {size, []string{"bytes=500000-600000,0-1048570"}, []oci.Span{{From: 0, To: 1_048_571}}},
		"of nothing":                        {0, []string{"bytes=0-", "bytes=658-661", "bytes=-5", "bytes=0-1,7-9"}, []oci.Span{{}, {}, {}, {}}},
	} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, known size %v", name, known), func(t *testing.T) {
				repository := "library/app-" + digest.FromString(fmt.Sprint(name, known)).Encoded()[:12]
				content := randomBytes(fmt.Sprint(name, known), c.size)
				d := digest.FromBytes(content)
				h.PushBlob(repository, d, content)
				if known {
					m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"a/b","digest":%q,"size":%d},"layers":[]}`,
						oci.MediaTypeDockerManifest, d, c.size)
					h.PushManifest(repository, "1.0", oci.MediaTypeDockerManifest, []byte(m))
					get(t, p, "/v2/"+repository+"/manifests/1.0", "Accept", anything)
				}
				for i, header := range c.asks {
					for range 2 {
						a := ask(t, p, http.MethodGet, "/v2/"+repository+"/blobs/"+d.String(), "Range", header)
						want, status := c.want[i], http.StatusPartialContent
						switch {
						case c.size == 0:
							status = http.StatusOK
						case want == oci.Span{}:
							status = http.StatusRequestedRangeNotSatisfiable
						}
						if a.status != status || a.err != nil {
							t.Fatalf("%s: want %d, got %s", header, status, a)
						}
						if status != http.StatusRequestedRangeNotSatisfiable && !bytes.Equal(a.body, content[want.From:want.To]) {
							t.Errorf("%s: %d bytes came that are not those of %v", header, len(a.body), want)
						}
					}
				}
			})
		}
	}
}
