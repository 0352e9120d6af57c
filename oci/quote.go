package oci

import (
	"strconv"
	"strings"
)

// Quote returns a stranger's string so that it may stand in a message or a log: in quotes,
// ASCII only, of a bounded length, and without the password of user:password@host.
func Quote(s string) string {
	const most = 140
	if at := strings.IndexByte(s, '@'); at > 0 {
		if colon := strings.LastIndexByte(s[:at], ':'); colon >= 0 && !strings.Contains(s[colon:at], "/") {
			s = s[:colon+1] + "***" + s[at:]
		}
	}
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
