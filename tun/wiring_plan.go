package tun

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// plan is what a namespace should have for a target. It is made from facts alone.
type plan struct {
	objects
	settings []setting
	remarks  []Remark
	ways     []wayBack // of the rules, in words
}

// wayBack is an interface behind which there are real servers, and how their replies are led into the tun device.
type wayBack struct {
	v6     bool
	link   *link
	rips   []netip.Addr
	narrow string // why only packets from the real servers are taken; empty if all are
}

// manyNarrowRules is from when on the number of rules is remarked on. The kernel tries one after the other, for every
// packet that it routes.
const manyNarrowRules = 128

func (c WiringConfig) plan(t Target, f *facts) *plan {
	p := &plan{objects: newObjects()}
	for _, v6 := range []bool{false, true} {
		var family Target
		for _, a := range t.VIPs {
			if a.Is6() == v6 {
				family.VIPs = append(family.VIPs, a)
			}
		}
		for _, a := range t.RIPs {
			if a.Is6() == v6 {
				family.RIPs = append(family.RIPs, a)
			}
		}
		if len(family.VIPs) == 0 {
			continue
		}
		if v6 {
			p.forward6(c, f)
		} else {
			p.forward4(c, f)
		}
		p.leadIn(c, family.VIPs, f)
		p.leadBack(c, v6, family, f)
	}
	if f.device != nil {
		for _, a := range f.addresses {
			if a.index == f.device.index && !c.Manual {
				p.remark(c.Device, fmt.Sprintf("it has the address %s, which makes the kernel answer instead of the director", a.addr),
					fmt.Sprintf("take it away: ip address flush dev %s", c.Device))
			}
		}
		if !f.device.up {
			p.remark(c.Device, "it is down, so nothing is balanced", fmt.Sprintf("set it up: ip link set %s up", c.Device))
		}
	}
	return p
}

func (p *plan) remark(about, problem, remedy string) {
	p.remarks = append(p.remarks, Remark{about, problem, remedy})
}

// forward4 lets the kernel forward IPv4, and take what comes out of the device.
func (p *plan) forward4(c WiringConfig, f *facts) {
	device, others := "ipv4/conf/"+c.Device+"/", "ipv4/conf/default/"
	p.settings = append(p.settings,
		setting{name: "ipv4/ip_forward", value: "1", need: needed, why: "the kernel forwards nothing to real servers or clients"},
		setting{name: device + "forwarding", before: others + "forwarding", value: "1", need: needed,
			why: "the kernel drops what the director sends"},
		// ICMP errors about replies come from the director's own kernel. Translated, they leave the device with one of
		// its addresses as the source.
		setting{name: device + "accept_local", before: others + "accept_local", value: "1", need: helps,
			why: "ICMP errors of the director's own kernel reach real servers under the client's address"})
	if !f.strict {
		// Packets from anywhere else pass any reverse path filter, because the reverse lookup matches the reply rules. For
		// a local source every filter but none refuses an interface without an address (measured).
		p.settings = append(p.settings, setting{name: device + "rp_filter", before: others + "rp_filter", value: "0", need: helps,
			why: "accept_local has no effect"})
	}
}

// forward6 does the same for IPv6.
func (p *plan) forward6(c WiringConfig, f *facts) {
	device, others := "ipv6/conf/"+c.Device+"/", "ipv6/conf/default/"
	p.settings = append(p.settings, setting{name: device + "disable_ipv6", before: others + "disable_ipv6", value: "0", need: needed,
		why: "no IPv6 route can lead into the device"})
	// A host that becomes a router drops the default routes that it learned from other routers, unless accept_ra is 2.
	for _, d := range f.defaults {
		if l := f.links[d.index]; l != nil && d.advertised && f.accepting[d.index] {
			p.settings = append(p.settings, setting{name: "ipv6/conf/" + l.name + "/accept_ra", value: "2", need: needed,
				why: "turning IPv6 forwarding on would remove the default route of " + l.name,
				told: fmt.Sprintf("%s has its default route from router advertisements, which the kernel ignores once it forwards IPv6, "+
					"so this was changed from 1 to 2 until lvsd stops", l.name)})
		}
	}
	p.settings = append(p.settings,
		setting{name: "ipv6/conf/all/forwarding", value: "1", need: needed, why: "the kernel forwards no IPv6 to real servers or clients"},
		setting{name: device + "forwarding", before: others + "forwarding", value: "1", need: needed,
			why: "the kernel drops the IPv6 packets that the director sends"})
}

// leadIn leads packets for VIPs into the device.
func (p *plan) leadIn(c WiringConfig, vips []netip.Addr, f *facts) {
	answering := make(map[*link]bool)
	for _, vip := range vips {
		prefix := netip.PrefixFrom(vip, vip.BitLen())
		// While there is no director, a VIP has no host; it must not follow a default route to somewhere else.
		p.routes[route{prefix, unix.RT_TABLE_MAIN, c.backstopMetric(), 0}] = struct{}{}
		if f.device != nil && f.device.up {
			p.routes[route{prefix, unix.RT_TABLE_MAIN, defaultMetric(vip), f.device.index}] = struct{}{}
		}
		if owner, ok := f.owner(vip); ok {
			p.remark(vip.String(), fmt.Sprintf("this VIP is an address of the host itself, on %s, so the kernel keeps its packets from the director", owner),
				fmt.Sprintf("take it away: ip address del %s dev %s", f.subnet(vip), owner))
			continue
		}
		for _, l := range f.neighbours(c, vip) {
			p.proxies[proxy{vip, l.index}] = struct{}{}
			if !answering[l] {
				answering[l] = true
				p.answer(l, vip.Is6())
			}
		}
	}
}

// neighbours returns the interfaces whose subnet an address is in, where hosts look for it by ARP or neighbour discovery.
func (f *facts) neighbours(c WiringConfig, a netip.Addr) (links []*link) {
	for _, own := range f.addresses {
		l := f.links[own.index]
		if l == nil || !l.up || !l.asks || l.name == c.Device || own.subnet.IsSingleIP() || !own.subnet.Contains(a) {
			continue
		}
		if !slices.Contains(links, l) {
			links = append(links, l)
		}
	}
	return links
}

// subnet returns an address of the host's own with the prefix length that it was given.
func (f *facts) subnet(a netip.Addr) netip.Prefix {
	for _, own := range f.addresses {
		if own.addr == a && own.subnet.Contains(a) {
			return netip.PrefixFrom(a, own.subnet.Bits())
		}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// answer makes the kernel answer for the proxy neighbours of an interface.
func (p *plan) answer(l *link, v6 bool) {
	family := "ipv4"
	if v6 {
		family = "ipv6"
		// The setting of the interface would do for solicitations to the multicast group. Those to the VIP itself, by
		// which hosts verify what they know, are answered only with the setting for all (measured): without it, each
		// verification fails and interrupts traffic for about a second. It changes nothing where no proxy neighbour is.
		p.settings = append(p.settings, setting{name: "ipv6/conf/all/proxy_ndp", value: "1", need: helps,
			why: fmt.Sprintf("hosts behind %s do not find VIPs in their own subnet", l.name)})
	}
	// The kernel delays answers for others by up to 0.8 s, to let the others answer first. Here there are none.
	p.settings = append(p.settings, setting{name: family + "/neigh/" + l.name + "/proxy_delay", value: "0", need: helps,
		why: fmt.Sprintf("the first packet of a host behind %s for a VIP in its subnet waits for up to 0.8 s", l.name)})
}

// leadBack leads what real servers send into the device, by a table with nothing but a default route and by rules that
// choose who uses it.
//
// One rule for each interface behind which there are real servers is the rule, because it is one comparison for each
// packet, and also catches ICMP errors of routers between. It takes everything that comes in there, and the director
// hands on what is not for it. So where clients come in as well, it would pull all their traffic through the director.
// There each real server gets a rule, and one more gets the ICMP errors.
func (p *plan) leadBack(c WiringConfig, v6 bool, t Target, f *facts) {
	behind := make(map[int][]netip.Addr)
	for _, rip := range t.RIPs {
		w := f.ways[rip]
		switch problem, remedy := f.obstacle(c, w, rip); {
		case w.local && c.Manual: // the operator may have found a way
		case problem != "":
			p.remark(rip.String(), problem, remedy)
		default:
			behind[w.index] = append(behind[w.index], rip)
		}
	}
	var ways []wayBack
	for index, rips := range behind {
		if l := f.links[index]; l != nil {
			ways = append(ways, wayBack{v6, l, rips, f.sharedWithClients(c, v6, index, t.VIPs)})
		}
	}
	slices.SortFunc(ways, func(a, b wayBack) int { return cmp.Compare(a.link.name, b.link.name) })
	p.ways = append(p.ways, ways...)
	for _, w := range ways {
		r := rule{v6: v6, iif: w.link.name, priority: c.Priority, table: c.Table}
		if w.narrow == "" {
			p.rules[r] = struct{}{}
			continue
		}
		r.priority = c.narrowPriority()
		for _, rip := range w.rips {
			r.from = rip
			p.rules[r] = struct{}{}
		}
		r.from, r.icmp = netip.Addr{}, true
		p.rules[r] = struct{}{}
		if len(w.rips) >= manyNarrowRules {
			p.remark(w.link.name, fmt.Sprintf("%s, so %d real servers behind it have a routing rule each, and the kernel tries all for every packet",
				w.narrow, len(w.rips)), "reach real servers by an interface of their own")
		}
	}
	if len(behind) > 0 && f.device != nil && f.device.up {
		prefix := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if v6 {
			prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		p.routes[route{prefix, c.Table, defaultMetric(prefix.Addr()), f.device.index}] = struct{}{}
	}
}

// obstacle says why packets cannot go from the director to a real server and back, or nothing.
func (f *facts) obstacle(c WiringConfig, w way, rip netip.Addr) (problem, remedy string) {
	switch {
	case w.problem != "":
		return "this real server cannot be reached: " + w.problem, fmt.Sprintf("look at: ip route get %s", rip)
	case w.local:
		return "this real server is an address of the director itself, whose replies cannot be led through the director",
			"run the service in a network namespace or on a host of its own"
	case f.device != nil && w.index == f.device.index:
		return fmt.Sprintf("this real server is routed into %s itself, so packets for it would come back", c.Device),
			"route it to where it is, or take it out of the VIPs"
	}
	return "", ""
}

// sharedWithClients tells why an interface may also be the way to clients, or nothing.
func (f *facts) sharedWithClients(c WiringConfig, v6 bool, index int, vips []netip.Addr) string {
	if slices.ContainsFunc(f.defaults, func(d defaultRoute) bool { return d.index == index && d.v6 == v6 }) {
		return "it is the way of a default route"
	}
	for _, own := range f.addresses {
		if own.index != index || own.subnet.IsSingleIP() || own.addr.Is6() != v6 {
			continue
		}
		if slices.ContainsFunc(vips, own.subnet.Contains) {
			return fmt.Sprintf("its subnet %s has a VIP", own.subnet)
		}
	}
	for _, r := range f.rules {
		if r.protocol == RouteProtocol && r.table != c.Table && r.v6 == v6 && r.iif == f.name(index) {
			return fmt.Sprintf("another director (table %d) has real servers behind it", r.table)
		}
	}
	return ""
}
