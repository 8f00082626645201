package balancer

import (
	"maps"
	"net/netip"

	"github.com/lvsd/lvsd/stack"
)

// snapshot is all that the packet path looks up, immutable but for what services and servers guard themselves. Workers
// take it once a batch; whoever changes anything makes a new one.
type snapshot struct {
	services map[serviceKey]*service
	vips     map[stack.Addr]struct{} // of services
	hint     vipHint
	servers  []*server // by number; nil where a number is free
	timeouts *stateTimeouts
	tunables Tunables
	env      *environment
}

// Environment is what the director is told of the network namespace it runs in.
type Environment struct {
	// Paths are the ways to real servers, by RIP.
	Paths map[netip.Addr]Path
	// Owned are prefixes that are routed into the director, beside the VIPs of services. A packet for an address in
	// them is never sent on, for it would come back: it is answered as the address's host would.
	Owned []netip.Prefix
	// Local are the addresses of the host that the director runs on. It may not send packets in their name, unless
	// SendLocal says that it can.
	Local     []netip.Addr
	SendLocal bool
}

type environment struct {
	paths     map[netip.Addr]*Path
	owned     map[stack.Addr]struct{}
	prefixes  []netip.Prefix // of Owned, those that are more than one address
	local     map[stack.Addr]struct{}
	sendLocal bool
}

func newEnvironment(e Environment) *environment {
	env := &environment{
		paths:     make(map[netip.Addr]*Path, len(e.Paths)),
		owned:     make(map[stack.Addr]struct{}),
		local:     make(map[stack.Addr]struct{}),
		sendLocal: e.SendLocal,
	}
	for a, p := range e.Paths {
		env.paths[a] = &p
	}
	for _, p := range e.Owned {
		if p.IsSingleIP() {
			env.owned[stack.AddrFrom(p.Addr())] = struct{}{}
		} else {
			env.prefixes = append(env.prefixes, p)
		}
	}
	for _, a := range e.Local {
		env.local[stack.AddrFrom(a)] = struct{}{}
	}
	return env
}

func (e *environment) path(a netip.Addr) *Path {
	if p, ok := e.paths[a]; ok {
		return p
	}
	return unknownPath
}

// owns tells whether packets for an address end here: it is a VIP or routed here like one.
func (s *snapshot) owns(a stack.Addr) bool {
	if _, ok := s.vips[a]; ok {
		return true
	}
	if _, ok := s.env.owned[a]; ok {
		return true
	}
	if len(s.env.prefixes) > 0 {
		addr := a.Netip()
		for _, p := range s.env.prefixes {
			if p.Contains(addr) {
				return true
			}
		}
	}
	return false
}

// setServices puts another set of services into a snapshot under construction.
func (s *snapshot) setServices(services map[serviceKey]*service) {
	s.services = services
	s.vips = make(map[stack.Addr]struct{}, len(services))
	for key := range services {
		s.vips[key.addr] = struct{}{}
	}
	s.hint = newVIPHint(s.vips)
}

// withServer returns a list of servers by number with one more, under its own number.
func withServer(servers []*server, srv *server) []*server {
	for int(srv.number) >= len(servers) {
		servers = append(servers, nil)
	}
	servers[srv.number] = srv
	return servers
}

// clone returns a copy to be changed. Maps and slices in it are still shared and must be replaced, not changed.
func (s *snapshot) clone() *snapshot {
	c := *s
	return &c
}

// vipHint guesses whether an address is a VIP, from one bit. It only decides which direction of a connection is looked
// up first; a wrong guess costs a second look.
type vipHint struct {
	bits  []uint64
	shift uint
}

func newVIPHint(vips map[stack.Addr]struct{}) vipHint {
	size := 4096 // bits
	for size < 64*len(vips) {
		size *= 2
	}
	h := vipHint{bits: make([]uint64, size/64), shift: 64}
	for ; size > 1; size /= 2 {
		h.shift--
	}
	for a := range maps.Keys(vips) {
		bit := h.bit(a)
		h.bits[bit/64] |= 1 << (bit % 64)
	}
	return h
}

func (h *vipHint) bit(a stack.Addr) uint64 {
	hi, lo := a.Words()
	return ((hi ^ lo) * golden) >> h.shift
}

func (h *vipHint) likely(a stack.Addr) bool {
	bit := h.bit(a)
	return h.bits[bit/64]>>(bit%64)&1 != 0
}
