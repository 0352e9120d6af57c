package clouds

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"
)

// awsKeys are credentials of AWS; session is "" for those of a user.
type awsKeys struct{ id, secret, session string }

// String keeps the secret out of whatever prints the keys.
func (awsKeys) String() string { return "keys (hidden)" }

// GoString is String, for %#v.
func (k awsKeys) GoString() string { return k.String() }

// sign adds the header Authorization of AWS Signature Version 4 (IAM User Guide, "Create a
// signed AWS API request") to req, whose body is body and whose query is empty. All headers
// that req has, and Host, are signed.
func sign(req *http.Request, body string, k awsKeys, region, service string, now time.Time) {
	date := now.UTC().Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", date)
	if k.session != "" {
		req.Header.Set("X-Amz-Security-Token", k.session)
	}
	headers := map[string]string{"host": req.URL.Host}
	for name, values := range req.Header {
		if name != "User-Agent" { // proxies may change it
			headers[strings.ToLower(name)] = strings.Join(strings.Fields(strings.Join(values, ",")), " ")
		}
	}
	var names []string
	for name := range headers {
		names = append(names, name)
	}
	slices.Sort(names)
	path := req.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	canonical := req.Method + "\n" + path + "\n\n"
	for _, name := range names {
		canonical += name + ":" + headers[name] + "\n"
	}
	signed := strings.Join(names, ";")
	canonical += "\n" + signed + "\n" + hexSHA256(body)
	scope := strings.Join([]string{date[:8], region, service, "aws4_request"}, "/")
	key := []byte("AWS4" + k.secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = hmacSHA256(key, part)
	}
	signature := hmacSHA256(key, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hexSHA256(canonical))
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+k.id+"/"+scope+", SignedHeaders="+signed+", Signature="+hex.EncodeToString(signature))
}

func hexSHA256(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func hmacSHA256(key []byte, s string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}
