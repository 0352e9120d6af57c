package hub

// Upstream gives the value of upstreams.<name> in Entrepot's configuration that
// makes it mirror this hub, anonymously. caFile is where CA has been written;
// it is not used without TLS.
func (h *Hub) Upstream(caFile string) map[string]any {
	u := map[string]any{
		"endpoints":      []string{h.URL()},
		"realms":         []string{h.Realm()},
		"redirect_hosts": []string{h.CDNHost()},
	}
	if h.ca != nil {
		u["tls"] = map[string]any{"ca": caFile}
	}
	return u
}
