package clouds

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/cloud"
)

// These tests ask a fake that checks what the real endpoints check.

const given = "given-out-by-the-cloud"

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func options(env map[string]string, hosts ...string) Options {
	return Options{Hosts: hosts, UserAgent: "entrepot/test", Env: func(name string) string { return env[name] }}
}

// awsEnv are the variables of each source.
func awsEnv(t *testing.T, fake string) map[string]map[string]string {
	return map[string]map[string]string{
		"environment": {"AWS_ACCESS_KEY_ID": cloud.KeyID, "AWS_SECRET_ACCESS_KEY": cloud.Secret, "AWS_SESSION_TOKEN": cloud.Session},
		"web":         {"AWS_WEB_IDENTITY_TOKEN_FILE": file(t, cloud.PodToken+"\n"), "AWS_ROLE_ARN": cloud.Role},
		"container":   {"AWS_CONTAINER_CREDENTIALS_FULL_URI": fake + "/container/keys", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": file(t, cloud.ContainerToken)},
		"instance":    {"AWS_EC2_METADATA_SERVICE_ENDPOINT": fake},
	}
}

func TestCredentialsOfAWSAreFoundInTheOrderOfItsSDKs(t *testing.T) {
	order := []string{"environment", "web", "container", "instance"}
	calls := [][]string{{"ecr"}, {"sts", "ecr"}, {"container", "ecr"}, {"imds token", "imds role", "imds keys", "ecr"}}
	for i := range order {
		f := cloud.New(t, given)
		env := map[string]string{"AWS_ENDPOINT_URL_ECR": f.URL, "AWS_ENDPOINT_URL_STS": f.URL}
		for _, source := range order[i:] { // this one, and all that come after it
			for k, v := range awsEnv(t, f.URL)[source] {
				env[k] = v
			}
		}
		p := NewECR(options(env), "")
		defer p.Close()
		got, err := p.Login(t.Context(), "123456789012.dkr.ecr.eu-west-1.amazonaws.com")
		if err != nil || got.Username != "AWS" || got.Password != given {
			t.Errorf("%s: want the login, got user %q, %v", order[i], got.Username, err)
		}
		if !slices.Equal(f.Calls(), calls[i]) {
			t.Errorf("%s: want the calls %q, got %q", order[i], calls[i], f.Calls())
		}
	}
}

func TestECRPublicHasALoginOfItsOwn(t *testing.T) {
	f := cloud.New(t, given)
	env := awsEnv(t, f.URL)["environment"]
	env["AWS_ENDPOINT_URL_ECR_PUBLIC"] = f.URL
	p := NewECR(options(env), "")
	defer p.Close()
	if got, err := p.Login(t.Context(), "public.ecr.aws"); err != nil || got.Password != given || f.Count("ecr-public") != 1 {
		t.Errorf("want the login, got %v, %v", f.Calls(), err)
	}
}

func TestEachRegistryHasTheAPIOfItsRegion(t *testing.T) {
	e := &ecr{region: "eu-central-1"}
	for host, want := range map[string]string{
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com":          "https://api.ecr.eu-west-1.amazonaws.com eu-west-1 amazonaws.com",
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn":      "https://api.ecr.cn-north-1.amazonaws.com.cn cn-north-1 amazonaws.com.cn",
		"123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com": "https://ecr-fips.us-gov-west-1.amazonaws.com us-gov-west-1 amazonaws.com",
		"123456789012.dkr-ecr.us-east-2.on.aws":                 "https://ecr.us-east-2.api.aws us-east-2 amazonaws.com",
		"123456789012.dkr-ecr-fips.us-east-2.on.aws":            "https://ecr-fips.us-east-2.api.aws us-east-2 amazonaws.com",
		"public.ecr.aws":           "https://api.ecr-public.us-east-1.amazonaws.com us-east-1 amazonaws.com",
		"registry.example.com:443": "https://api.ecr.eu-central-1.amazonaws.com eu-central-1 amazonaws.com",
	} {
		a := e.api(host)
		if got := a.url + " " + a.region + " " + a.suffix; got != want {
			t.Errorf("%s: want %s, got %s", host, want, got)
		}
	}
}

func TestAConfiguredSourceThatFailsIsNamedWithTheRemedyAndNoSecret(t *testing.T) {
	refuse := func(endpoint string, status int, body string) func(*cloud.Fake) {
		return func(f *cloud.Fake) { f.Fail(endpoint, status, body) }
	}
	unsigned := `{"__type":"InvalidSignatureException","message":"Signature expired"}`
	for name, c := range map[string]struct {
		source string
		env    map[string]string
		fail   func(*cloud.Fake)
		want   []string
	}{
		"half of the keys":         {"environment", map[string]string{"AWS_SECRET_ACCESS_KEY": ""}, nil, []string{"AWS_ACCESS_KEY_ID", "set both"}},
		"a wrong key":              {"environment", map[string]string{"AWS_SECRET_ACCESS_KEY": "another"}, nil, []string{"the ECR API at http://", "400", "does not match", "clock"}},
		"an old signature":         {"environment", nil, refuse("ecr", 400, unsigned), []string{"Signature expired", "clock"}},
		"no right":                 {"environment", nil, refuse("ecr", 400, `{"__type":"AccessDeniedException","Message":"User: arn:aws:sts::1:x is not authorized"}`), []string{"arn:aws:sts::1:x is not authorized", "allow the role ecr:GetAuthorizationToken"}},
		"no role":                  {"web", map[string]string{"AWS_ROLE_ARN": ""}, nil, []string{"AWS_ROLE_ARN is not"}},
		"another role":             {"web", map[string]string{"AWS_ROLE_ARN": "arn:aws:iam::1:role/other"}, nil, []string{"the STS endpoint at http://", "403", "AccessDenied", "trust policy of arn:aws:iam::1:role/other"}},
		"no token file":            {"web", map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token"}, nil, []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "no such file"}},
		"a token that is told":     {"web", nil, refuse("sts", 400, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>bad "+cloud.PodToken+"</Message></Error></ErrorResponse>"), []string{"InvalidIdentityToken: bad ***"}},
		"keys over plain http":     {"container", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://198.51.100.1/keys"}, nil, []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI", "neither https"}},
		"a container's wrong pass": {"container", map[string]string{"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "wrong"}, nil, []string{"the container credentials endpoint at http://", "401", "Pod Identity"}},
		"a machine without role":   {"instance", nil, refuse("imds role", 404, ""), []string{"the instance metadata service at http://", "404", "IAM role"}},
		"no metadata service":      {"instance", map[string]string{"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"}, nil, []string{"http://127.0.0.1:1/latest/api/token", "can't be reached", "hop limit"}},
		"metadata is off":          {"instance", map[string]string{"AWS_EC2_METADATA_DISABLED": "true"}, nil, []string{"AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID"}},
		"a redirect":               {"environment", nil, refuse("ecr", 307, ""), []string{"answered 307", "redirects are not followed"}},
		"no JSON":                  {"environment", nil, refuse("ecr", 200, "<html>"), []string{"not the documented JSON"}},
		"no token":                 {"environment", nil, refuse("ecr", 200, `{"authorizationData":[]}`), []string{"without a token"}},
		"a token for no header":    {"environment", nil, refuse("ecr", 200, `{"authorizationData":[{"authorizationToken":"QVdTOmEKYg=="}]}`), []string{"can't be sent"}},
		"an endless answer":        {"environment", nil, refuse("ecr", 200, strings.Repeat(" ", maxAnswer+1)), []string{"more than"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := cloud.New(t, given)
			env := map[string]string{"AWS_ENDPOINT_URL_ECR": f.URL, "AWS_ENDPOINT_URL_STS": f.URL}
			for _, more := range []map[string]string{awsEnv(t, f.URL)[c.source], c.env} {
				for k, v := range more {
					env[k] = v
				}
			}
			if c.fail != nil {
				c.fail(f)
			}
			p := NewECR(options(env), "")
			defer p.Close()
			_, err := p.Login(t.Context(), "123456789012.dkr.ecr.eu-west-1.amazonaws.com")
			wantFailure(t, err, c.want...)
			if slices.Contains(f.Calls(), "POST /elsewhere") || slices.Contains(f.Calls(), "GET /elsewhere") {
				t.Error("the redirect was followed")
			}
		})
	}
}

// wantFailure checks that err says all words, and no secret.
func wantFailure(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("want an error with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("want %q in the error, got %v", w, err)
		}
	}
	for _, s := range []string{cloud.Secret, cloud.Session, cloud.PodToken, cloud.ContainerToken, cloud.EntraToken, cloud.FederatedToken, given} {
		if strings.Contains(err.Error(), s) || strings.Contains(err.Error(), url.QueryEscape(s)) {
			t.Errorf("the error shows the secret %q: %v", s, err)
		}
	}
}

func TestThrottlingAndFailuresAreRepeatedAFewTimes(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   int
	}{{429, "", tries}, {500, "", tries}, {503, "", tries}, {400, `{"__type":"ThrottlingException"}`, tries}, {403, "", 1}, {400, `{"__type":"InvalidParameterException"}`, 1}} {
		f := cloud.New(t, given)
		env := awsEnv(t, f.URL)["environment"]
		env["AWS_ENDPOINT_URL_ECR"] = f.URL
		f.Fail("ecr", c.status, c.body)
		p := NewECR(options(env), "")
		defer p.Close()
		_, err := p.Login(t.Context(), "123456789012.dkr.ecr.eu-west-1.amazonaws.com")
		wantFailure(t, err, fmt.Sprint(c.status))
		if n := f.Count("ecr"); n != c.want {
			t.Errorf("%d %s: asked %d times, want %d", c.status, c.body, n, c.want)
		}
	}
}

func TestGoogleLoginsComeFromAFileOrTheMetadataServer(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	f := cloud.New(t, given)
	f.Key = &key.PublicKey
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata") == "true" {
			_, _ = fmt.Fprintf(w, `{"access_token":%q}`, cloud.FederatedToken)
		}
	}))
	defer source.Close()
	credentials := func(v map[string]any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return file(t, string(text))
	}
	account := map[string]any{"type": "service_account", "client_email": "cache@project.iam.gserviceaccount.com", "private_key_id": "1", "private_key": private, "token_uri": f.URL + "/google/token"}
	federation := func(source map[string]any, impersonate string) map[string]any {
		return map[string]any{"type": "external_account", "audience": "//iam.googleapis.com/pool", "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
			"token_url": f.URL + "/google/token", "service_account_impersonation_url": impersonate, "credential_source": source}
	}
	byFile := map[string]any{"file": file(t, cloud.FederatedToken+"\n")}
	byURL := map[string]any{"url": source.URL, "headers": map[string]string{"Metadata": "true"}, "format": map[string]string{"type": "json", "subject_token_field_name": "access_token"}}
	login := func(env map[string]string, file string) (Login, error) {
		p := NewGoogle(options(env), file)
		defer p.Close()
		return p.Login(t.Context(), "europe-docker.pkg.dev")
	}
	metadata := strings.TrimPrefix(f.URL, "http://")
	for name, c := range map[string]struct {
		file, variable, want, call string
	}{
		"metadata server":          {want: given, call: "google metadata"},
		"key of a service account": {variable: credentials(account), want: given, call: "google token"},
		"google.file":              {file: credentials(account), variable: "/nowhere", want: given, call: "google token"},
		"federation by a file":     {file: credentials(federation(byFile, "")), want: "fake-federated-access", call: "google token"},
		"federation by a URL":      {file: credentials(federation(byURL, f.URL+"/google/impersonate")), want: given, call: "google impersonate"},
	} {
		got, err := login(map[string]string{"GCE_METADATA_HOST": metadata, "GOOGLE_APPLICATION_CREDENTIALS": c.variable}, c.file)
		if calls := f.Calls(); err != nil || got != (Login{Username: "oauth2accesstoken", Password: c.want}) || calls[len(calls)-1] != c.call {
			t.Errorf("%s: want the login by %s, got %q, %v", name, c.call, calls, err)
		}
	}

	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	f.Key = &other.PublicKey
	plain := map[string]any{}
	for k, v := range account {
		plain[k] = v
	}
	plain["token_uri"] = "http://token.example.com/"
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"a key that is not known": {credentials(account), []string{"Google's token endpoint at " + f.URL + "/google/token", "invalid_grant: Invalid JWT Signature. ***", "check that the service account"}},
		"a token over plain http": {credentials(plain), []string{"not https"}},
		"no JSON":                 {file(t, "nonsense"), []string{"google.file names", "no JSON"}},
		"another type":            {credentials(map[string]any{"type": "gdch"}), []string{"google.file names", "none of"}},
		"a program":               {credentials(federation(map[string]any{"executable": map[string]string{"command": "/bin/true"}}, "")), []string{"not built in"}},
		"no file":                 {"/nowhere/key.json", []string{"google.file", "no such file"}},
	} {
		_, err := login(nil, c.file)
		t.Run(name, func(t *testing.T) { wantFailure(t, err, c.want...) })
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the key is told: %v", name, err)
		}
	}
	_, err = login(map[string]string{"GCE_METADATA_HOST": "127.0.0.1:1"}, "")
	wantFailure(t, err, "the metadata server at http://127.0.0.1:1/", "can't be reached", "attach a service account")
}

func TestAzureLoginsComeFromAWorkloadIdentityOrAManagedOne(t *testing.T) {
	f := cloud.New(t, given)
	workload := map[string]string{"AZURE_FEDERATED_TOKEN_FILE": file(t, cloud.FederatedToken), "AZURE_CLIENT_ID": cloud.ClientID, "AZURE_TENANT_ID": cloud.Tenant, "AZURE_AUTHORITY_HOST": f.URL + "/"}
	with := func(more ...string) map[string]string {
		env := map[string]string{}
		for k, v := range workload {
			env[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			env[more[i]] = more[i+1]
		}
		return env
	}
	machine := map[string]string{"AZURE_POD_IDENTITY_AUTHORITY_HOST": f.URL}
	registry := strings.TrimPrefix(f.URL, "http://")
	login := func(env map[string]string, client string) (Login, error) {
		p := NewAzure(options(env, f.URL), client)
		defer p.Close()
		return p.Login(t.Context(), registry)
	}
	for want, env := range map[string]map[string]string{"entra": workload, "azure imds": machine} {
		before := f.Count(want)
		got, err := login(env, "")
		if err != nil || got != (Login{Username: azureUser, IdentityToken: given}) || f.Count(want) != before+1 {
			t.Errorf("%s: want the login, got %q, %v", want, f.Calls(), err)
		}
	}
	if _, err := login(with("AZURE_CLIENT_ID", "another"), cloud.ClientID); err != nil {
		t.Errorf("azure.client_id does not go before the variable: %v", err)
	}
	_, err := login(with("AZURE_CLIENT_ID", "another"), "")
	wantFailure(t, err, "Microsoft Entra at "+f.URL, "401", "AADSTS70021", "***", "federated credential")
	_, err = login(with("AZURE_TENANT_ID", ""), "")
	wantFailure(t, err, "AZURE_TENANT_ID is not")
	_, err = login(with("AZURE_AUTHORITY_HOST", "http://login.example.com"), "")
	wantFailure(t, err, "not https")
	f.Fail("azure imds", 400, `{"error":"invalid_request","error_description":"Identity not found"}`)
	_, err = login(machine, "")
	wantFailure(t, err, "the instance metadata service at "+f.URL, "Identity not found", "managed identity", "azure.client_id")
	f.Fail("exchange", 401, `{"errors":[{"code":"UNAUTHORIZED","message":"no `+cloud.EntraToken+`"}]}`)
	_, err = login(workload, "")
	wantFailure(t, err, "the registry's token exchange at "+f.URL+"/oauth2/exchange", "UNAUTHORIZED: no ***", "AcrPull")
	f.Fail("exchange", 307, "")
	_, err = login(workload, "")
	wantFailure(t, err, "redirects are not followed")
}

func TestARefreshTokenSaysItsEnd(t *testing.T) {
	for token, want := range map[string]time.Time{
		"x.eyJleHAiOjE4MDAwMDAwMDB9.x": time.Unix(1_800_000_000, 0), "x.eyJleHAiOi0xfQ.x": {}, "x.!.x": {}, "opaque": {}, "x.e30.x": {},
	} {
		if got := expiry(token); !got.Equal(want) {
			t.Errorf("%s: want %v, got %v", token, want, got)
		}
	}
}
