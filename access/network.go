package access

import (
	"bytes"
	"fmt"
	"net/netip"
)

// network is a range of addresses whose clients have a name.
type network struct {
	prefix netip.Prefix
	caller *Caller
}

// ParsePrefix reads a range as people write it: "10.0.0.0/8", or one address.
func ParsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		if p.Addr().Is4In6() {
			return netip.Prefix{}, fmt.Errorf("%q is an IPv4 range in IPv6 clothes; write it as IPv4", text)
		}
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no range of addresses; write 10.0.0.0/8, 2001:db8::/32 or one address", text)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, text := range list {
		p, err := ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Trusts tells whether peer is a trusted proxy.
func (g *Guard) Trusts(peer netip.Addr) bool { return contains(g.proxies, peer.Unmap().WithZone("")) }

// client gives the address of whoever asks. Where the connection is a trusted
// proxy's that is the last address of X-Forwarded-For which is not a trusted
// proxy's too: what stands before it was written by strangers. An entry that is no
// address gives the zero Addr, which is in no network.
func (g *Guard) client(q *Question) netip.Addr {
	at := q.Peer.Unmap().WithZone("")
	if len(g.proxies) == 0 {
		return at
	}
	for i := len(q.Forwarded) - 1; i >= 0; i-- {
		rest := q.Forwarded[i]
		for len(rest) > 0 {
			if !contains(g.proxies, at) {
				return at
			}
			entry := rest
			if comma := bytes.LastIndexByte(rest, ','); comma >= 0 {
				entry, rest = rest[comma+1:], rest[:comma]
			} else {
				rest = nil
			}
			a, err := netip.ParseAddr(string(bytes.TrimSpace(entry)))
			if err != nil {
				return netip.Addr{}
			}
			at = a.Unmap().WithZone("")
		}
	}
	return at
}

// networkOf gives the caller that an address stands for; nil for none.
func (g *Guard) networkOf(a netip.Addr) *Caller {
	for i := range g.networks {
		if g.networks[i].prefix.Contains(a) {
			return g.networks[i].caller
		}
	}
	return nil
}
