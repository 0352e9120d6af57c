package clouds

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The requests and signatures are those of AWS's published test suite for Signature
// Version 4 (aws-sig-v4-test-suite: get-vanilla, post-vanilla, post-x-www-form-urlencoded).
func TestSignaturesAreThoseOfThePublishedTestSuite(t *testing.T) {
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	keys := awsKeys{id: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	for name, c := range map[string]struct {
		method, body, contentType, want string
	}{
		"get-vanilla":  {method: "GET", want: "SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		"post-vanilla": {method: "POST", want: "SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		"post-x-www-form-urlencoded": {method: "POST", body: "Param1=value1", contentType: "application/x-www-form-urlencoded",
			want: "SignedHeaders=content-type;host;x-amz-date, Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	} {
		req, err := http.NewRequest(c.method, "https://example.amazonaws.com/", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.contentType != "" {
			req.Header.Set("Content-Type", c.contentType)
		}
		sign(req, c.body, keys, "us-east-1", "service", at)
		want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, " + c.want
		if got := req.Header.Get("Authorization"); got != want {
			t.Errorf("%s: want %s, got %s", name, want, got)
		}
	}
}
