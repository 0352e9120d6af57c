package upstream

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// FuzzHeaders reads what an upstream says beside its bodies: how long to wait, what
// it grants, which token server to ask. Nothing of it may be without bound.
func FuzzHeaders(f *testing.F) {
	f.Add("120", "100;w=21600", `Bearer realm="https://auth.test/token",service="x",scope="repository:a:pull"`, "Wed, 21 Oct 2026 07:28:00 GMT")
	f.Add("Wed, 21 Oct 2026 07:28:00 GMT", "0;w=0", `Basic realm="x"`, "")
	f.Add("1790000000", ";w=9999999999999999999", `Bearer realm="http://[::1%25x]:99999/"`, "x")
	t, err := newTrust(nil, []string{"https://auth.test"}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(tt *testing.T, wait, quota, challenge, date string) {
		h := http.Header{"Retry-After": {wait}, "Date": {date}, "Ratelimit-Limit": {quota}, "Ratelimit-Remaining": {quota}, "Www-Authenticate": {challenge}}
		if d := retryAfter(h); d < 0 || d > 24*time.Hour {
			tt.Errorf("Retry-After %q of %q is %s", wait, date, d)
		}
		for _, c := range []Credential{{}, {Username: "alice", Password: "x"}} {
			d, scopes := wanted(h, t.realm, c)
			if len(scopes) > maxScopes {
				tt.Errorf("%q: %d scopes", challenge, len(scopes))
			}
			if d == nil || d.realm == nil {
				continue
			}
			if (d.realm.Scheme != "https" && d.realm.Scheme != "http") || d.realm.Hostname() == "" || d.realm.User != nil || !isASCII(d.realm.Host) || len(d.service) > maxService {
				tt.Errorf("%q: the token server is %q of service %q", challenge, d.realm, d.service)
			}
			if ask, _ := t.realm(d.realm); !ask {
				tt.Errorf("%q: %s may not be asked", challenge, d.realm)
			}
		}
	})
}

// FuzzLists reads pages of tags and referrers.
func FuzzLists(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"digest":"` + string(layerDigest) + `","size":1,"annotations":{"a":"b"}},{}]}`))
	f.Add([]byte(`{"manifests":[[]]}`))
	f.Add([]byte(`{"manifests":null,"manifests":[null]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var list []v1.Descriptor
		_, _ = oci.ReadDescriptors(bytes.NewReader(raw), nil, func(d v1.Descriptor) error { list = append(list, d); return nil })
		for _, d := range distinct(list) {
			if _, err := oci.ParseDigest(string(d.Digest)); err != nil || d.Size < 0 || d.Data != nil {
				t.Errorf("%q: the descriptor %+v", raw, d)
			}
			if tag := referrersTag(d.Digest); len(tag) > 97 {
				t.Errorf("%s has the tag %q", d.Digest, tag)
			}
		}
	})
}
