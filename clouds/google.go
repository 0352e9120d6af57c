package clouds

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	googleScope = "https://www.googleapis.com/auth/cloud-platform"
	googleToken = "https://oauth2.googleapis.com/token" // #nosec G101 -- an address
	// googleUser goes with an access token as the password (Artifact Registry,
	// "Configure authentication to Artifact Registry for Docker").
	googleUser = "oauth2accesstoken"
)

// NewGoogle returns the logins of Google's registries. file is a key of a service account or a
// configuration of workload identity federation; if it is "", the one that the variable
// GOOGLE_APPLICATION_CREDENTIALS names, else the metadata server is asked. The file is read
// for each login.
func NewGoogle(o Options, file string) *Provider {
	g := &google{newCaller(o.UserAgent), o.Env, file}
	return newProvider(Google, o, g.login)
}

type google struct {
	*caller
	env  func(string) string
	file string
}

// googleFile is what a file of credentials may hold (Google Cloud, "How Application Default
// Credentials works"; AIP-4112, AIP-4117).
type googleFile struct {
	Type         string `json:"type"`
	Email        string `json:"client_email"`
	KeyID        string `json:"private_key_id"`
	Key          string `json:"private_key"`
	TokenURI     string `json:"token_uri"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	RefreshToken string `json:"refresh_token"`

	Audience      string `json:"audience"`
	SubjectType   string `json:"subject_token_type"`
	TokenURL      string `json:"token_url"`
	Impersonation string `json:"service_account_impersonation_url"`
	Source        struct {
		File    string            `json:"file"`
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
		Format  struct {
			Type  string `json:"type"`
			Field string `json:"subject_token_field_name"`
		} `json:"format"`
	} `json:"credential_source"`
}

// login gets an access token: with the file, or from the metadata server.
func (g *google) login(ctx context.Context, _, _ string) (Login, time.Time, error) {
	setting, file := "google.file", g.file
	if file == "" {
		setting, file = "GOOGLE_APPLICATION_CREDENTIALS", g.env("GOOGLE_APPLICATION_CREDENTIALS")
	}
	var token string
	var until time.Time
	var err error
	if file == "" {
		token, until, err = g.metadata(ctx)
	} else {
		token, until, err = g.byFile(ctx, setting, file)
	}
	if err != nil {
		return Login{}, time.Time{}, err
	}
	return Login{Username: googleUser, Password: token}, until, nil
}

// metadata asks the metadata server for a token of the machine's or the pod's service account.
func (g *google) metadata(ctx context.Context) (string, time.Time, error) {
	host := first(g.env("GCE_METADATA_HOST"), "169.254.169.254")
	const remedy = "attach a service account to this machine or pod, or set GOOGLE_APPLICATION_CREDENTIALS"
	c := call{what: "the metadata server", client: g.local, method: http.MethodGet,
		url:    "http://" + host + "/computeMetadata/v1/instance/service-accounts/default/token",
		header: map[string]string{"Metadata-Flavor": "Google"},
		advise: func(status int, _ string) string {
			if status >= 400 && status < 500 && status != http.StatusTooManyRequests {
				return remedy
			}
			return ""
		}}
	token, until, err := g.accessToken(ctx, c)
	if answered := (*answerError)(nil); err != nil && !errors.As(err, &answered) {
		err = fmt.Errorf("%w; %s", err, remedy)
	}
	return token, until, err
}

// byFile gets a token with a file of credentials.
func (g *google) byFile(ctx context.Context, setting, path string) (string, time.Time, error) {
	text, err := secretFile(setting, path)
	if err != nil {
		return "", time.Time{}, err
	}
	var f googleFile
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return "", time.Time{}, fmt.Errorf("%s names %s, which is no JSON of Google credentials", setting, path)
	}
	wrong := func(what string) error { return fmt.Errorf("%s names %s, %s", setting, path, what) }
	switch f.Type {
	case "service_account":
		at := first(f.TokenURI, googleToken)
		assertion, err := f.assertion(at, time.Now())
		if err != nil {
			return "", time.Time{}, wrong(err.Error())
		}
		return g.token(ctx, at, url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}},
			"check that the service account and its key are not disabled, and this machine's clock", assertion)
	case "authorized_user":
		return g.token(ctx, first(f.TokenURI, googleToken), url.Values{"grant_type": {"refresh_token"}, "client_id": {f.ClientID},
			"client_secret": {f.ClientSecret}, "refresh_token": {f.RefreshToken}},
			"run gcloud auth application-default login again", f.ClientSecret, f.RefreshToken)
	case "external_account":
		return g.federated(ctx, f, wrong)
	}
	return "", time.Time{}, wrong("whose type is none of service_account, authorized_user and external_account")
}

// assertion returns the signed JWT with which a service account asks for a token (Google
// Identity, "Using OAuth 2.0 for Server to Server Applications"; RFC 7523).
func (f googleFile) assertion(audience string, now time.Time) (string, error) {
	block, _ := pem.Decode([]byte(f.Key))
	if block == nil || f.Email == "" {
		return "", errors.New("which has no private_key or no client_email")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return "", errors.New("whose private_key is no RSA key")
	}
	header, err := json.Marshal(map[string]string{"alg": "RS256", "typ": "JWT", "kid": f.KeyID})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{"iss": f.Email, "scope": googleScope, "aud": audience, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", errors.New("whose private_key can't sign")
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// federated exchanges a token of another issuer for one of Google (workload identity
// federation), and that for one of a service account if the file names one.
func (g *google) federated(ctx context.Context, f googleFile, wrong func(string) error) (string, time.Time, error) {
	var subject string
	switch {
	case f.Source.File != "":
		text, err := secretFile("credential_source.file", f.Source.File)
		if err != nil {
			return "", time.Time{}, err
		}
		subject = text
	case f.Source.URL != "":
		raw, err := g.do(ctx, call{what: "the credential source", client: g.local, method: http.MethodGet, url: f.Source.URL, header: f.Source.Headers})
		if err != nil {
			return "", time.Time{}, err
		}
		subject = strings.TrimSpace(string(raw))
	default:
		return "", time.Time{}, wrong("whose credential_source is neither a file nor a url; others are not built in")
	}
	if f.Source.Format.Type == "json" {
		var doc map[string]any
		if err := readJSON("the credential source", []byte(subject), &doc); err != nil {
			return "", time.Time{}, err
		}
		subject, _ = doc[f.Source.Format.Field].(string)
	}
	if err := usable("the credential source", subject); err != nil {
		return "", time.Time{}, err
	}
	token, until, err := g.token(ctx, first(f.TokenURL, "https://sts.googleapis.com/v1/token"), url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "audience": {f.Audience}, "scope": {googleScope},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"}, "subject_token": {subject}, "subject_token_type": {f.SubjectType},
	}, "check the workload identity pool's provider, and that the token is for its audience", subject)
	if err != nil || f.Impersonation == "" {
		return token, until, err
	}
	if err := secure(f.Impersonation); err != nil {
		return "", time.Time{}, err
	}
	const what = "the service account credentials API"
	raw, err := g.do(ctx, call{what: what, client: g.api, method: http.MethodPost, url: f.Impersonation,
		header: map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + token},
		body:   `{"scope":["` + googleScope + `"],"lifetime":"3600s"}`, secrets: []string{token},
		advise: func(status int, _ string) string {
			if status == http.StatusForbidden || status == http.StatusNotFound {
				return "grant roles/iam.workloadIdentityUser on the service account to this identity"
			}
			return ""
		}})
	if err != nil {
		return "", time.Time{}, err
	}
	var doc struct {
		Token  string    `json:"accessToken"`
		Expire time.Time `json:"expireTime"`
	}
	if err := readJSON(what, raw, &doc); err != nil {
		return "", time.Time{}, err
	}
	return doc.Token, doc.Expire, usable(what, doc.Token)
}

// token posts form to a token endpoint. secrets are in it; advice is for a refusal.
func (g *google) token(ctx context.Context, at string, form url.Values, advice string, secrets ...string) (string, time.Time, error) {
	if err := secure(at); err != nil {
		return "", time.Time{}, err
	}
	return g.accessToken(ctx, call{what: "Google's token endpoint", client: g.api, method: http.MethodPost, url: at, body: form.Encode(),
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, secrets: secrets,
		advise: func(status int, _ string) string {
			if status >= 400 && status < 500 && status != http.StatusTooManyRequests {
				return advice
			}
			return ""
		}})
}

// accessToken sends c and reads the answer of OAuth2 (RFC 6749, section 5.1).
func (s *caller) accessToken(ctx context.Context, c call) (string, time.Time, error) {
	raw, err := s.do(ctx, c)
	if err != nil {
		return "", time.Time{}, err
	}
	var doc struct {
		Token   string `json:"access_token"`
		Expires any    `json:"expires_in"` // a number; a text from Azure's metadata service
	}
	if err := readJSON(c.what, raw, &doc); err != nil {
		return "", time.Time{}, err
	}
	var until time.Time
	if s, err := json.Number(fmt.Sprint(doc.Expires)).Float64(); err == nil && s > 0 {
		until = time.Now().Add(time.Duration(min(s, 24*3600)) * time.Second)
	}
	return doc.Token, until, usable(c.what, doc.Token)
}

// secure returns an error if a secret would go to the URL at in clear, other than on this
// machine.
func secure(at string) error {
	u, err := url.Parse(at)
	if err == nil && (u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback())) {
		return nil
	}
	return errors.New("a token endpoint has an address that is not https")
}
