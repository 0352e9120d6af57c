package cloud

import "net/url"

// form reads a form; each key has one value.
func form(body string) map[string]string {
	m := map[string]string{}
	q, err := url.ParseQuery(body)
	if err != nil {
		return m
	}
	for k, v := range q {
		m[k] = v[0]
	}
	return m
}
