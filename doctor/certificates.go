package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/entrepot-dev/entrepot/configs"
)

// Certificates checks when the certificates that the settings name end.
type Certificates struct {
	Files []configs.CertificateFile
	// Unusable are the files that serve refuses.
	Unusable []configs.UnusableFile
}

// Name is "certificates".
func (Certificates) Name() string { return "certificates" }

// Look reads the files.
func (c Certificates) Look(context.Context) []Finding {
	var found []Finding
	refused := map[string]bool{}
	for _, f := range c.Unusable {
		refused[f.Key] = true
		finding := Finding{Status: Failure, Seen: fmt.Sprintf("%s: %v; serve does not start", f.Key, f.Err), Advice: "set " + f.Key + " to a PEM file that entrepot can read"}
		if errors.Is(f.Err, fs.ErrPermission) {
			finding = Finding{Status: Warning, Seen: fmt.Sprintf("%s: %v", f.Key, f.Err), Advice: "let this user read the file, or run the doctor as the service's user"}
		}
		found = append(found, finding)
	}
	var first *configs.Expiry
	for _, f := range c.Files {
		e, err := f.Expiry(time.Now())
		switch {
		case err != nil && refused[f.Key]:
			continue
		case err != nil:
			found = append(found, Finding{Status: Warning, Seen: err.Error(), Advice: "let this user read the file, or run the doctor as the service's user"})
			continue
		case e.Validity == configs.Ended:
			found = append(found, Finding{Status: Failure, Seen: e.String(), Advice: c.advice(e)})
		case e.Validity != configs.Valid:
			found = append(found, Finding{Status: Warning, Seen: e.String(), Advice: c.advice(e)})
		}
		if first == nil || e.NotAfter.Before(first.NotAfter) {
			first = &e
		}
	}
	if len(found) == 0 && first != nil {
		found = append(found, Finding{Status: OK, Seen: fmt.Sprintf("of %d files, %s", len(c.Files), first)})
	}
	return found
}

// advice says how a certificate is replaced.
func (Certificates) advice(e configs.Expiry) string {
	if e.Role == configs.RoleUpstreamCA || e.Role == configs.RoleOIDCCA {
		return "replace the file; then: entrepot reload"
	}
	return "replace the file: the running entrepot reads it again by itself"
}
