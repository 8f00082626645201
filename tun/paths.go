package tun

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Paths is what a director needs to know of its network namespace.
type Paths struct {
	Servers map[netip.Addr]Path // by RIP
	// Owned are the prefixes that are routed into the tun device, the VIPs of Apply among them. A packet for one of them
	// must never be written to the device, for it would come back. A default route into the device is not counted as
	// such: what it takes is not owned but passes through.
	Owned []netip.Prefix
	// Local are the addresses of the namespace itself.
	Local []netip.Addr
	// SendLocal tells whether the kernel takes IPv4 packets out of the device whose source is one of Local.
	SendLocal bool
	// Remarks are as Apply returns them.
	Remarks []Remark
}

func (p Paths) equal(q Paths) bool {
	return maps.Equal(p.Servers, q.Servers) && slices.Equal(p.Owned, q.Owned) && slices.Equal(p.Local, q.Local) &&
		p.SendLocal == q.SendLocal && slices.Equal(p.Remarks, q.Remarks)
}

// Path is the way from the director to a real server.
type Path struct {
	// MTU is the most bytes that an IP packet may have on the way, as far as the director's kernel knows: that of the
	// interface, or of the route if it is less. 0 if unknown.
	MTU int
	// Source is the director's own address toward the server. It may be invalid.
	Source    netip.Addr
	Interface string
	Gateway   netip.Addr // the next hop; invalid if the server is a neighbour itself
	// Unreachable is set when a packet for the server would end in the director's own kernel: there is no route, the
	// interface is down or has no carrier, or the next hop did not answer when it was asked for its hardware address.
	//
	// The kernel asks for a next hop again only when there is a packet for it. But no packets are sent to an unreachable
	// server, so Watch makes the kernel ask every few seconds. A next hop counts as failed until it answers.
	Unreachable bool
	Reason      string // why it is unreachable, in words
}

// paths puts together what is known.
func (k *kernel) paths(c WiringConfig, t Target, f *facts, failed map[hop]struct{}, owned []netip.Prefix, remarks []Remark) Paths {
	p := Paths{Servers: make(map[netip.Addr]Path, len(t.RIPs)), Owned: owned, Remarks: remarks}
	for _, rip := range t.RIPs {
		p.Servers[rip] = f.path(c, failed, rip)
	}
	for _, a := range f.addresses {
		p.Local = append(p.Local, a.addr)
	}
	p.Local = slices.Compact(p.Local)
	device := "ipv4/conf/" + c.Device + "/"
	accepts := k.sysctls.number(device+"accept_local") != 0 || k.sysctls.number("ipv4/conf/all/accept_local") != 0
	p.SendLocal = accepts && !f.strict && k.sysctls.number(device+"rp_filter") == 0
	return p
}

func (f *facts) path(c WiringConfig, failed map[hop]struct{}, rip netip.Addr) Path {
	w := f.ways[rip]
	if w.problem != "" {
		return Path{Unreachable: true, Reason: w.problem}
	}
	l := f.links[w.index]
	if l == nil {
		return Path{Unreachable: true, Reason: "its interface has just gone"}
	}
	p := Path{MTU: l.mtu, Source: w.source, Interface: l.name, Gateway: w.gateway}
	if rip.Is6() && l.mtu6 > 0 {
		p.MTU = min(p.MTU, l.mtu6)
	}
	if w.mtu > 0 {
		p.MTU = min(p.MTU, w.mtu)
	}
	_, dead := failed[w.nextHop(rip)]
	switch {
	case w.local:
		if !c.Manual { // an operator may have found a way
			p.Unreachable, p.Reason = true, "it is an address of the director itself"
		}
	case f.device != nil && l.index == f.device.index:
		p.Unreachable, p.Reason = true, fmt.Sprintf("it is routed into %s itself", c.Device)
	case !l.up:
		p.Unreachable, p.Reason = true, l.name+" is down"
	case !l.running:
		p.Unreachable, p.Reason = true, l.name+" has no carrier"
	case dead:
		p.Unreachable, p.Reason = true, fmt.Sprintf("its next hop %s does not answer on %s", w.nextHop(rip).addr, l.name)
	}
	return p
}

// ownedPrefixes returns the prefixes for which packets out of the device would be routed into it again. Tables in which
// only packets from other interfaces are looked up do not count; those for the way back are like that.
func (k *kernel) ownedPrefixes(c WiringConfig, f *facts) ([]netip.Prefix, error) {
	if f.device == nil {
		return nil, nil
	}
	tables := map[int]bool{unix.RT_TABLE_MAIN: true, unix.RT_TABLE_DEFAULT: true, unix.RT_TABLE_LOCAL: true}
	for _, r := range f.rules {
		if (r.iif == "" || r.iif == c.Device) && (r.table != c.Table || c.Manual) {
			tables[r.table] = true
		}
	}
	routes, err := k.listRoutes(netlink.Route{LinkIndex: f.device.index}, 0)
	if err != nil {
		return nil, err
	}
	leads := func(r netlink.Route) bool {
		return r.LinkIndex == f.device.index || slices.ContainsFunc(r.MultiPath, func(hop *netlink.NexthopInfo) bool {
			return hop.LinkIndex == f.device.index
		})
	}
	var owned []netip.Prefix
	for _, r := range routes {
		p, ok := prefixOf(r.Dst)
		if ok && p.Bits() > 0 && r.Type == unix.RTN_UNICAST && leads(r) && tables[r.Table] && !p.Addr().IsLinkLocalUnicast() {
			owned = append(owned, p)
		}
	}
	slices.SortFunc(owned, netip.Prefix.Compare)
	return slices.Compact(owned), nil
}
