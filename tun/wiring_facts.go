package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// facts are what a plan depends on, as found in the namespace.
type facts struct {
	links     map[int]*link
	device    *link // the tun device; nil if there is none
	addresses []address
	rules     []foundRule
	defaults  []defaultRoute
	ways      map[netip.Addr]way // to real servers
	strict    bool               // net.ipv4.conf.all.rp_filter is on
	accepting map[int]bool       // interfaces that accept router advertisements as a host does (accept_ra is 1)
}

// link is a network interface.
type link struct {
	index    int
	name     string
	mtu      int
	mtu6     int  // for IPv6, for which routers may advertise less; 0 if nobody asked
	up       bool // set up by somebody
	running  bool // and able to carry packets
	asks     bool // it has neighbours that are asked for their hardware address
	hardware net.HardwareAddr
}

// address is an address of the namespace itself.
type address struct {
	addr   netip.Addr
	index  int
	subnet netip.Prefix // that is reached through the interface directly
}

// defaultRoute is an interface that a default route leads to.
type defaultRoute struct {
	index      int
	v6         bool
	advertised bool // learned from a router advertisement
	gateway    netip.Addr
}

// way is what the kernel answers when it is asked for the route to an address.
type way struct {
	index   int // of the outgoing interface
	gateway netip.Addr
	source  netip.Addr
	mtu     int    // of the route, or that the kernel learned for it; 0 if it is the interface's
	local   bool   // the address is the namespace's own
	problem string // why there is no way, or nothing
}

// nextHop is the neighbour that packets for an address are handed to.
func (w way) nextHop(a netip.Addr) hop {
	if w.gateway.IsValid() {
		return hop{w.gateway, w.index}
	}
	return hop{a, w.index}
}

func (k *kernel) facts(c WiringConfig, t Target, defaults []defaultRoute) (*facts, error) {
	f := &facts{
		defaults:  defaults,
		ways:      make(map[netip.Addr]way, len(t.RIPs)),
		strict:    k.sysctls.number("ipv4/conf/all/rp_filter") != 0,
		accepting: make(map[int]bool),
	}
	var err error
	if f.links, err = k.links(); err != nil {
		return nil, err
	}
	for _, l := range f.links {
		if l.name == c.Device {
			f.device = l
		}
	}
	if f.addresses, err = k.addresses(); err != nil {
		return nil, err
	}
	if f.rules, err = k.listRules(); err != nil {
		return nil, err
	}
	for _, d := range defaults {
		if l := f.links[d.index]; l != nil && d.advertised {
			f.accepting[d.index] = k.sysctls.number("ipv6/conf/"+l.name+"/accept_ra") == 1
		}
	}
	for _, rip := range t.RIPs {
		if _, vip := slices.BinarySearchFunc(t.VIPs, rip, netip.Addr.Compare); vip {
			f.ways[rip] = way{problem: "it is a VIP, so packets for it come back to the director"}
			continue
		}
		if f.ways[rip], err = k.way(rip); err != nil {
			return nil, fmt.Errorf("look up the route to real server %s: %w", rip, err)
		}
		if l := f.links[f.ways[rip].index]; rip.Is6() && l != nil && l.mtu6 == 0 {
			l.mtu6 = k.sysctls.number("ipv6/conf/" + l.name + "/mtu")
		}
	}
	return f, nil
}

func (k *kernel) links() (map[int]*link, error) {
	var list []netlink.Link
	err := complete(func() (err error) { list, err = k.LinkList(); return })
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	links := make(map[int]*link, len(list))
	for _, l := range list {
		a := l.Attrs()
		links[a.Index] = &link{
			index:    a.Index,
			name:     a.Name,
			mtu:      a.MTU,
			up:       a.RawFlags&unix.IFF_UP != 0,
			running:  a.RawFlags&(unix.IFF_UP|unix.IFF_RUNNING) == unix.IFF_UP|unix.IFF_RUNNING,
			asks:     a.RawFlags&(unix.IFF_LOOPBACK|unix.IFF_NOARP|unix.IFF_POINTOPOINT) == 0,
			hardware: a.HardwareAddr,
		}
	}
	return links, nil
}

func (k *kernel) addresses() ([]address, error) {
	var list []netlink.Addr
	err := complete(func() (err error) { list, err = k.AddrList(nil, netlink.FAMILY_ALL); return })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addresses := make([]address, 0, len(list))
	for _, l := range list {
		own, ok := prefixOf(l.IPNet)
		if !ok {
			continue
		}
		a := address{addr: own.Addr(), index: l.LinkIndex, subnet: own.Masked()}
		if peer, ok := prefixOf(l.Peer); ok {
			a.subnet = peer.Masked()
		}
		addresses = append(addresses, a)
	}
	slices.SortFunc(addresses, func(a, b address) int { return a.addr.Compare(b.addr) })
	return addresses, nil
}

// defaultRoutes returns the interfaces that a default route of any table leads to. This reads all routes there are,
// because the kernel cannot be asked for less.
func (k *kernel) defaultRoutes() ([]defaultRoute, error) {
	found := []defaultRoute{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		before := len(found)
		err := complete(func() error {
			found = found[:before]
			filter := netlink.Route{} // of all tables
			return k.RouteListFilteredIter(family, &filter, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
				// Two halves are a way to put a default route before another one.
				p, ok := prefixOf(r.Dst)
				if !ok || p.Bits() > 1 || r.Type != unix.RTN_UNICAST || r.Protocol == RouteProtocol {
					return true
				}
				d := defaultRoute{r.LinkIndex, family == unix.AF_INET6, r.Protocol == unix.RTPROT_RA, addrOf(r.Gw)}
				for _, hop := range r.MultiPath {
					d.index, d.gateway = hop.LinkIndex, addrOf(hop.Gw)
					found = append(found, d)
				}
				if len(r.MultiPath) == 0 {
					found = append(found, d)
				}
				return true
			})
		})
		if err != nil && !noFamily(family, err) {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
	}
	return found, nil
}

// way asks the kernel for the route to an address. That there is none is an answer, not an error. The kernel is asked
// for the way of a packet of the host's own: it has the same way as one out of the device, but for rules of the
// operator's that tell them apart.
func (k *kernel) way(a netip.Addr) (way, error) {
	routes, err := k.RouteGet(a.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return way{problem: "no route leads to it"}, nil
	case errors.Is(err, unix.EHOSTUNREACH):
		return way{problem: "an unreachable route covers it"}, nil
	case errors.Is(err, unix.EACCES):
		return way{problem: "a prohibit route covers it"}, nil
	case errors.Is(err, unix.EINVAL):
		return way{problem: "a blackhole route covers it"}, nil
	case noFamily(unix.AF_INET6, err) && a.Is6():
		return way{problem: "the kernel has no IPv6"}, nil
	case err != nil:
		return way{}, err
	case len(routes) == 0:
		return way{problem: "no route leads to it"}, nil
	}
	r := routes[0]
	w := way{index: r.LinkIndex, gateway: addrOf(r.Gw), source: addrOf(r.Src), mtu: r.MTU}
	if via, ok := r.Via.(*netlink.Via); ok {
		w.gateway = addrOf(via.Addr)
	}
	switch r.Type {
	case unix.RTN_UNICAST:
	case unix.RTN_LOCAL:
		w.local = true
	case unix.RTN_BROADCAST:
		w.problem = "it is a broadcast address"
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
		w.problem = "an unreachable route covers it"
	default:
		w.problem = fmt.Sprintf("its route is of a kind (%d) that cannot be used", r.Type)
	}
	return w, nil
}

// name returns an interface's name.
func (f *facts) name(index int) string {
	if l := f.links[index]; l != nil {
		return l.name
	}
	return fmt.Sprintf("interface %d", index)
}

// owner returns the interface that has an address of its own.
func (f *facts) owner(a netip.Addr) (name string, ok bool) {
	i, ok := slices.BinarySearchFunc(f.addresses, a, func(x address, a netip.Addr) int { return x.addr.Compare(a) })
	if !ok {
		return "", false
	}
	return f.name(f.addresses[i].index), true
}

// linkLocal returns the IPv6 address of an interface that is for its own link, or an invalid address.
func (f *facts) linkLocal(index int) netip.Addr {
	for _, a := range f.addresses {
		if a.index == index && a.addr.Is6() && a.addr.IsLinkLocalUnicast() {
			return a.addr
		}
	}
	return netip.Addr{}
}

// prepareDevice sets up the tun device. IPv6 must not generate an address for it, and not before it is up, or the
// kernel sends router solicitations into it.
func (k *kernel) prepareDevice(l *link) error {
	target := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: l.name}}
	mode := "ipv6/conf/" + l.name + "/addr_gen_mode"
	if now, err := k.sysctls.read(mode); err == nil && now != "1" {
		if err := k.LinkSetIP6AddrGenMode(target, 1); err != nil { // IN6_ADDR_GEN_MODE_NONE
			return permission(fmt.Errorf("set the IPv6 address generation mode of %s to none: %w", l.name, err))
		}
	}
	if l.mtu != deviceMTU {
		if err := k.LinkSetMTU(target, deviceMTU); err != nil {
			return permission(fmt.Errorf("set the MTU of %s to %d: %w", l.name, deviceMTU, err))
		}
		l.mtu = deviceMTU
	}
	if !l.up {
		if err := k.LinkSetUp(target); err != nil {
			return permission(fmt.Errorf("set %s up: %w", l.name, err))
		}
		l.up = true
	}
	return nil
}

// permission adds to an error what the user can do about it, if it is about permission.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w; lvsd needs CAP_NET_ADMIN in its network namespace: run it as root, give its container "+
			"`--cap-add NET_ADMIN`, or wire the namespace yourself and set routes to \"manual\"", err)
	}
	return err
}
