package tun

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Survey is what a network namespace looks like to a director, for people to read.
type Survey struct {
	NetAdmin bool // the kernel lets this process change routes here
	NetRaw   bool // and send the announcements of VIPs that moved; few need it
	IPv6     bool // the kernel has IPv6
	// Sysctls tells whether those of the namespace can be changed; in containers they often cannot.
	Sysctls     bool
	Forwarding4 bool
	Forwarding6 bool
	// Conntrack is how many connections the kernel tracks here, or -1 if connection tracking is not loaded.
	Conntrack  int
	Directors  []int // routing tables of directors that have, or left, something here; the surveyed one's among them
	Interfaces []InterfaceSurvey
	Defaults   []DefaultRoute
	VIPs       []VIPSurvey
	Servers    []ServerSurvey
	Remarks    []Remark // what to do something about
}

// InterfaceSurvey is a network interface. Sysctls are as they take effect, with those for all interfaces.
type InterfaceSurvey struct {
	Name        string
	MTU         int
	Up, Running bool
	Addresses   []netip.Addr
	RPFilter    int // 0 off, 1 strict, 2 loose; all work
	Forwarding4 bool
	Forwarding6 bool
	AcceptRA    int
	ProxyARP    bool
}

// DefaultRoute is a route to everywhere, in any table.
type DefaultRoute struct {
	Interface  string
	Gateway    netip.Addr // may be invalid
	IPv6       bool
	Advertised bool // by a router, and so lost when the kernel becomes a router, unless accept_ra is 2
}

// VIPSurvey is a VIP.
type VIPSurvey struct {
	Address netip.Addr
	Routed  bool     // packets for it are led into the tun device now
	Owner   string   // the interface that has it as its own address, which it must not; or empty
	Subnets []string // the interfaces in whose subnet it is, where it is answered for
}

// ServerSurvey is a real server.
type ServerSurvey struct {
	Address netip.Addr
	Path    Path
	Returns bool   // packets from it are led into the tun device now
	Narrow  string // why only packets from real servers are led back from its interface, not all; empty if all are
}

// SurveyNamespace looks at the calling thread's network namespace for a target. It changes nothing.
func SurveyNamespace(c WiringConfig, t Target) (*Survey, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	t, err := t.normalized()
	if err != nil {
		return nil, err
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	defer k.close()
	defaults, err := k.defaultRoutes()
	if err != nil {
		return nil, err
	}
	f, err := k.facts(c, t, defaults)
	if err != nil {
		return nil, err
	}
	failed, err := k.failedNeighbours()
	if err != nil {
		return nil, err
	}
	directors, err := k.others(WiringConfig{}, f)
	if err != nil {
		return nil, err
	}
	p := c.plan(t, f)
	s := &Survey{
		NetAdmin:    k.mayChange(c),
		NetRaw:      k.announce.err == nil,
		IPv6:        k.sysctls.v6 != nil,
		Sysctls:     k.sysctls.writable("ipv4/ip_forward"),
		Forwarding4: k.sysctls.number("ipv4/ip_forward") != 0,
		Forwarding6: k.sysctls.number("ipv6/conf/all/forwarding") != 0,
		Conntrack:   conntrackEntries(),
		Directors:   slices.Sorted(maps.Keys(directors)),
		Interfaces:  k.surveyInterfaces(f),
		Remarks:     p.remarks,
	}
	for _, d := range defaults {
		s.Defaults = append(s.Defaults, DefaultRoute{f.name(d.index), d.gateway, d.v6, d.advertised})
	}
	for _, vip := range t.VIPs {
		v := VIPSurvey{Address: vip}
		v.Owner, _ = f.owner(vip)
		for _, l := range f.neighbours(c, vip) {
			v.Subnets = append(v.Subnets, l.name)
		}
		if w, err := k.way(vip); err == nil && w.problem == "" && f.device != nil {
			v.Routed = w.index == f.device.index
		}
		s.VIPs = append(s.VIPs, v)
	}
	for _, rip := range t.RIPs {
		v := ServerSurvey{Address: rip, Path: f.path(c, failed, rip), Returns: k.returns(f, rip)}
		for _, w := range p.ways {
			if slices.Contains(w.rips, rip) {
				v.Narrow = w.narrow
			}
		}
		s.Servers = append(s.Servers, v)
	}
	s.Remarks = append(s.Remarks, s.remarks(c, f, p)...)
	return s, nil
}

// mayChange tries to remove a rule that is not there.
func (k *kernel) mayChange(c WiringConfig) bool {
	return k.deleteRule(rule{iif: c.Device, priority: c.Priority, table: c.Table}) == nil
}

// returns tells whether packets from a real server to anywhere are led into the device.
func (k *kernel) returns(f *facts, rip netip.Addr) bool {
	anywhere := netip.AddrFrom4([4]byte{192, 0, 2, 1}) // RFC 5737
	if rip.Is6() {
		anywhere = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}) // RFC 3849
	}
	w := f.ways[rip]
	if w.problem != "" || w.local || f.device == nil {
		return false
	}
	routes, err := k.RouteGetWithOptions(anywhere.AsSlice(), &netlink.RouteGetOptions{IifIndex: w.index, SrcAddr: rip.AsSlice()})
	return err == nil && len(routes) > 0 && routes[0].LinkIndex == f.device.index
}

func (k *kernel) surveyInterfaces(f *facts) (interfaces []InterfaceSurvey) {
	both := func(name, key string) int {
		return max(k.sysctls.number("ipv4/conf/all/"+key), k.sysctls.number("ipv4/conf/"+name+"/"+key))
	}
	for _, l := range f.links {
		i := InterfaceSurvey{
			Name: l.name, MTU: l.mtu, Up: l.up, Running: l.running,
			RPFilter:    both(l.name, "rp_filter"),
			ProxyARP:    both(l.name, "proxy_arp") != 0,
			Forwarding4: k.sysctls.number("ipv4/conf/"+l.name+"/forwarding") != 0,
			Forwarding6: k.sysctls.number("ipv6/conf/"+l.name+"/forwarding") != 0,
			AcceptRA:    k.sysctls.number("ipv6/conf/" + l.name + "/accept_ra"),
		}
		for _, a := range f.addresses {
			if a.index == l.index {
				i.Addresses = append(i.Addresses, a.addr)
			}
		}
		interfaces = append(interfaces, i)
	}
	slices.SortFunc(interfaces, func(a, b InterfaceSurvey) int { return cmp.Compare(a.Name, b.Name) })
	return interfaces
}

// conntrackEntries counts what the kernel tracks in the calling thread's namespace.
func conntrackEntries() int {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}

// remarks are those that the plan does not make: about what lvsd would do itself when it runs, if it may.
func (s *Survey) remarks(c WiringConfig, f *facts, p *plan) (remarks []Remark) {
	remark := func(about, problem, remedy string) { remarks = append(remarks, Remark{about, problem, remedy}) }
	if !s.NetAdmin {
		remark("CAP_NET_ADMIN", "this process may not change the network of its namespace",
			"run lvsd as root, or give its container `--cap-add NET_ADMIN`, or wire the namespace yourself and set routes to \"manual\"")
	}
	for _, set := range p.settings {
		family, _, _ := strings.Cut(set.name, "/")
		off := set.name == "ipv4/ip_forward" && !s.Forwarding4 || set.name == "ipv6/conf/all/forwarding" && !s.Forwarding6
		if off && (!s.Sysctls || c.Manual) {
			remark(sysctlKey(set.name), fmt.Sprintf("%s forwarding is off and lvsd cannot turn it on; without it %s", family, set.why), set.remedy())
		}
	}
	servers := make(map[string]bool)
	for _, w := range p.ways {
		servers[w.link.name] = true
		if forwards := slices.ContainsFunc(s.Interfaces, func(i InterfaceSurvey) bool {
			return i.Name == w.link.name && (w.v6 && i.Forwarding6 || !w.v6 && i.Forwarding4)
		}); !forwards && (s.Forwarding4 && !w.v6 || s.Forwarding6 && w.v6) {
			family := "ipv4"
			if w.v6 {
				family = "ipv6"
			}
			key := sysctlKey(family + "/conf/" + w.link.name + "/forwarding")
			remark(w.link.name, "forwarding is on in general but off for this interface, so replies of real servers behind it are dropped",
				fmt.Sprintf("turn it on: sysctl -w %s=1", key))
		}
	}
	for _, i := range s.Interfaces {
		if i.ProxyARP && servers[i.Name] {
			remark(i.Name, "proxy_arp is on and real servers are behind it; once their packets are led through the director, the kernel answers "+
				"their ARP requests for every address", fmt.Sprintf("turn it off: sysctl -w %s=0", sysctlKey("ipv4/conf/"+i.Name+"/proxy_arp")))
		}
	}
	if s.Conntrack > 0 {
		remark("connection tracking", fmt.Sprintf("it is active (%s), and would see each packet twice, before the director and behind it",
			plural(s.Conntrack, "connection")), fmt.Sprintf("to save that time: nft 'add table inet lvsd; add chain inet lvsd untracked { type filter hook "+
			"prerouting priority raw; }; add rule inet lvsd untracked iifname %q notrack'", c.Device))
	}
	if c.Manual && f.device != nil {
		for _, v := range s.VIPs {
			if !v.Routed {
				remark(v.Address.String(), "this VIP is not routed into "+c.Device, fmt.Sprintf("ip route replace %s dev %s", v.Address, c.Device))
			}
		}
		for _, v := range s.Servers {
			if !v.Returns && !v.Path.Unreachable {
				remark(v.Address.String(), fmt.Sprintf("what this real server sends is not routed into %s, so clients get its replies untranslated", c.Device),
					fmt.Sprintf("lead what comes in by %s into it with a rule and a table", v.Path.Interface))
			}
		}
	}
	return remarks
}
