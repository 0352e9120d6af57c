package rewrite

import "strconv"

// quote gives a stranger's string so that it may stand in a message or a log:
// in quotes, ASCII only, of a bounded length.
func quote(s string) string {
	const most = 140
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
