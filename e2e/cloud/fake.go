// Package cloud is a fake of the endpoints at which Amazon, Google and Microsoft give out
// short-lived credentials. It checks what the real ones check: signatures, headers, tokens.
package cloud

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the fake wants to be shown, and the secrets that it gives out.
const (
	KeyID, Secret, Session = "AKIDFAKE0123456789", "fake/secret+key/of/aws0123456789abcdefgh", "fakesession//token=="
	Role                   = "arn:aws:iam::123456789012:role/cache"
	PodToken               = "eyJfake.pod.token"
	ContainerToken         = "fake-container-authorization"
	Tenant, ClientID       = "fake-tenant", "fake-client"
	EntraToken             = "fake-entra-access-token"
	FederatedToken         = "fake-federated-token"
)

// Fake is the running fake. Its methods are safe for concurrent use.
type Fake struct {
	*httptest.Server
	// Key verifies the assertions of Google's service accounts; set it before use.
	Key *rsa.PublicKey

	mu       sync.Mutex
	password string
	life     time.Duration
	fail     map[string]answer
	calls    []string
}

type answer struct {
	status int
	body   string
}

// New starts a fake that gives out password, good for an hour. It ends with the test.
func New(t testing.TB, password string) *Fake {
	f := &Fake{password: password, life: time.Hour, fail: map[string]answer{}}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Server.Close)
	return f
}

// Give changes the password that is given out next, and how long it is good.
func (f *Fake) Give(password string, life time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.password, f.life = password, life
}

// Fail lets an endpoint, "ecr" or "sts", answer so; status 0 mends it.
func (f *Fake) Fail(endpoint string, status int, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[endpoint] = answer{status, body}
}

// Calls returns the endpoints that were asked, in order.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Count returns how often an endpoint was asked.
func (f *Fake) Count(endpoint string) int {
	n := 0
	for _, c := range f.Calls() {
		if c == endpoint {
			n++
		}
	}
	return n
}

func (f *Fake) serve(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	body := string(raw)
	endpoint, serve := f.endpoint(r)
	f.mu.Lock()
	f.calls = append(f.calls, endpoint)
	failed, password, life := f.fail[endpoint], f.password, f.life
	f.mu.Unlock()
	if failed.status != 0 {
		w.Header().Set("Location", f.URL+"/elsewhere")
		w.WriteHeader(failed.status)
		_, _ = io.WriteString(w, failed.body)
		return
	}
	if serve == nil {
		http.NotFound(w, r)
		return
	}
	serve(w, r, body, password, life)
}

type handler func(w http.ResponseWriter, r *http.Request, body, password string, life time.Duration)

func (f *Fake) endpoint(r *http.Request) (string, handler) {
	target := r.Header.Get("X-Amz-Target")
	switch at := r.Method + " " + r.URL.Path; {
	case at == "POST /" && target == "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken":
		return "ecr", f.ecr
	case at == "POST /" && target == "SpencerFrontendService.GetAuthorizationToken":
		return "ecr-public", f.ecr
	case at == "POST /" && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		return "sts", f.sts
	case at == "PUT /latest/api/token":
		return "imds token", func(w http.ResponseWriter, r *http.Request, _, _ string, _ time.Duration) {
			if r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			_, _ = io.WriteString(w, "fake-imds-token")
		}
	case at == "GET /latest/meta-data/iam/security-credentials/":
		return "imds role", f.imds(func(w http.ResponseWriter) { _, _ = io.WriteString(w, "cache-role\n") })
	case at == "GET /latest/meta-data/iam/security-credentials/cache-role":
		return "imds keys", f.imds(writeKeys)
	case at == "GET /container/keys":
		return "container", func(w http.ResponseWriter, r *http.Request, _, _ string, _ time.Duration) {
			if r.Header.Get("Authorization") != ContainerToken {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			writeKeys(w)
		}
	case at == "GET /computeMetadata/v1/instance/service-accounts/default/token":
		return "google metadata", func(w http.ResponseWriter, r *http.Request, _, password string, life time.Duration) {
			if r.Header.Get("Metadata-Flavor") != "Google" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			writeToken(w, password, life)
		}
	case at == "POST /google/token":
		return "google token", f.googleToken
	case at == "POST /google/impersonate":
		return "google impersonate", func(w http.ResponseWriter, r *http.Request, _, password string, life time.Duration) {
			if r.Header.Get("Authorization") != "Bearer fake-federated-access" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			writeJSON(w, map[string]any{"accessToken": password, "expireTime": time.Now().Add(life).UTC().Format(time.RFC3339)})
		}
	case at == "POST /"+Tenant+"/oauth2/v2.0/token":
		return "entra", f.entra
	case at == "GET /metadata/identity/oauth2/token":
		return "azure imds", func(w http.ResponseWriter, r *http.Request, _, _ string, life time.Duration) {
			q := r.URL.Query()
			if r.Header.Get("Metadata") != "true" || q.Get("resource") != "https://containerregistry.azure.net" || q.Get("api-version") == "" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			writeJSON(w, map[string]any{"access_token": EntraToken, "expires_in": fmt.Sprint(int(life.Seconds())), "token_type": "Bearer"})
		}
	case at == "POST /oauth2/exchange":
		return "exchange", f.exchange
	}
	return r.Method + " " + r.URL.Path, nil
}

// ecr gives the authorization token to who has signed.
func (f *Fake) ecr(w http.ResponseWriter, r *http.Request, body, password string, life time.Duration) {
	if why := verify(r, body); why != "" {
		w.WriteHeader(http.StatusBadRequest)
		writeJSON(w, map[string]any{"__type": "InvalidSignatureException", "message": why})
		return
	}
	data := map[string]any{"authorizationToken": base64.StdEncoding.EncodeToString([]byte("AWS:" + password)),
		"expiresAt": float64(time.Now().Add(life).UnixMilli()) / 1000, "proxyEndpoint": "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"}
	if strings.HasPrefix(r.Header.Get("X-Amz-Target"), "Spencer") {
		writeJSON(w, map[string]any{"authorizationData": data})
		return
	}
	writeJSON(w, map[string]any{"authorizationData": []any{data}})
}

// verify computes the signature of AWS Signature Version 4 anew. It returns what is wrong.
func verify(r *http.Request, body string) string {
	credential, rest, ok := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="), ", SignedHeaders=")
	signed, signature, ok2 := strings.Cut(rest, ", Signature=")
	parts := strings.Split(credential, "/")
	if !ok || !ok2 || len(parts) != 5 || parts[0] != KeyID {
		return "the Authorization header is not one of Signature Version 4 with the key that is known"
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > 15*time.Minute || parts[1] != at.Format("20060102") {
		return "the date is not now"
	}
	names := strings.Split(signed, ";")
	for _, must := range []string{"host", "x-amz-date", "x-amz-target"} {
		if !slices.Contains(names, must) || !slices.IsSorted(names) {
			return "the header " + must + " is not signed, or they are not in order"
		}
	}
	if r.Header.Get("X-Amz-Security-Token") != Session || !slices.Contains(names, "x-amz-security-token") {
		return "the session token is not there, or not signed"
	}
	hash := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }
	mac := func(key []byte, s string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(s))
		return m.Sum(nil)
	}
	text := r.Method + "\n" + r.URL.Path + "\n" + r.URL.RawQuery + "\n"
	for _, n := range names {
		v := r.Header.Get(n)
		if n == "host" {
			v = r.Host
		}
		text += n + ":" + strings.TrimSpace(v) + "\n"
	}
	text += "\n" + signed + "\n" + hash(body)
	key := mac(mac(mac(mac([]byte("AWS4"+Secret), parts[1]), parts[2]), parts[3]), parts[4])
	if hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+r.Header.Get("X-Amz-Date")+"\n"+strings.Join(parts[1:], "/")+"\n"+hash(text))) != signature {
		return "The request signature we calculated does not match the signature you provided."
	}
	return ""
}

// sts is AssumeRoleWithWebIdentity.
func (f *Fake) sts(w http.ResponseWriter, r *http.Request, body, _ string, life time.Duration) {
	q := form(body)
	if q["Action"] != "AssumeRoleWithWebIdentity" || q["Version"] != "2011-06-15" || q["RoleArn"] != Role || q["RoleSessionName"] == "" || q["WebIdentityToken"] != PodToken || r.Header.Get("Authorization") != "" {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>`)
		return
	}
	_, _ = fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
<SessionToken>%s</SessionToken><SecretAccessKey>%s</SecretAccessKey><Expiration>%s</Expiration><AccessKeyId>%s</AccessKeyId>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, Session, Secret, time.Now().Add(life).UTC().Format(time.RFC3339), KeyID)
}

func (f *Fake) imds(then func(http.ResponseWriter)) handler {
	return func(w http.ResponseWriter, r *http.Request, _, _ string, _ time.Duration) {
		if r.Header.Get("X-aws-ec2-metadata-token") != "fake-imds-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		then(w)
	}
}

// googleToken takes the assertion of a service account, and the exchange of federation.
func (f *Fake) googleToken(w http.ResponseWriter, r *http.Request, body, password string, life time.Duration) {
	q := form(body)
	refuse := func(why string) {
		w.WriteHeader(http.StatusBadRequest)
		writeJSON(w, map[string]any{"error": "invalid_grant", "error_description": why})
	}
	switch q["grant_type"] {
	case "urn:ietf:params:oauth:grant-type:token-exchange":
		if q["subject_token"] != FederatedToken || q["audience"] == "" || q["subject_token_type"] == "" || q["scope"] == "" || q["requested_token_type"] != "urn:ietf:params:oauth:token-type:access_token" {
			refuse("the subject token is not good")
			return
		}
		writeToken(w, "fake-federated-access", life)
	case "urn:ietf:params:oauth:grant-type:jwt-bearer":
		parts := strings.Split(q["assertion"], ".")
		var claims struct {
			Iss, Aud, Scope string
			Exp, Iat        int64
		}
		if len(parts) != 3 {
			refuse("the assertion is no JWT")
			return
		}
		raw, err := base64.RawURLEncoding.DecodeString(parts[1])
		signature, err2 := base64.RawURLEncoding.DecodeString(parts[2])
		sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		now := time.Now().Unix()
		if err != nil || err2 != nil || rsa.VerifyPKCS1v15(f.Key, crypto.SHA256, sum[:], signature) != nil || json.Unmarshal(raw, &claims) != nil {
			refuse("Invalid JWT Signature. " + q["assertion"])
			return
		}
		if claims.Iss != "cache@project.iam.gserviceaccount.com" || claims.Aud != f.URL+"/google/token" || claims.Scope == "" || claims.Iat > now || claims.Exp <= now || claims.Exp > claims.Iat+3600 {
			refuse("Invalid JWT: claims")
			return
		}
		writeToken(w, password, life)
	default:
		refuse("unsupported grant type")
	}
}

// entra takes a federated credential.
func (f *Fake) entra(w http.ResponseWriter, r *http.Request, body, _ string, life time.Duration) {
	q := form(body)
	if q["client_id"] != ClientID || q["grant_type"] != "client_credentials" || q["scope"] != "https://containerregistry.azure.net/.default" ||
		q["client_assertion_type"] != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || q["client_assertion"] != FederatedToken {
		w.WriteHeader(http.StatusUnauthorized)
		writeJSON(w, map[string]any{"error": "invalid_client", "error_description": "AADSTS70021: No matching federated identity record found for presented assertion " + q["client_assertion"]})
		return
	}
	writeToken(w, EntraToken, life)
}

// exchange is a registry's: password is its refresh token. One that has the form of a JWT
// says its own end.
func (f *Fake) exchange(w http.ResponseWriter, r *http.Request, body, password string, _ time.Duration) {
	q := form(body)
	if q["grant_type"] != "access_token" || q["service"] != r.Host || q["access_token"] != EntraToken {
		w.WriteHeader(http.StatusUnauthorized)
		writeJSON(w, map[string]any{"errors": []any{map[string]string{"code": "UNAUTHORIZED", "message": "authentication required"}}})
		return
	}
	writeJSON(w, map[string]any{"refresh_token": password})
}

func writeKeys(w http.ResponseWriter) {
	writeJSON(w, map[string]any{"Code": "Success", "AccessKeyId": KeyID, "SecretAccessKey": Secret, "Token": Session, "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})
}

func writeToken(w http.ResponseWriter, token string, life time.Duration) {
	writeJSON(w, map[string]any{"access_token": token, "expires_in": int(life.Seconds()), "token_type": "Bearer"})
}

func writeJSON(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
