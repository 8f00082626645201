package tun

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun/nstest"
)

// serverPath returns a condition on the path to one server.
func serverPath(rip string, ok func(Path) bool) func(Paths) bool {
	return func(p Paths) bool {
		path, found := p.Servers[netip.MustParseAddr(rip)]
		return found && ok(path)
	}
}

func reachable(p Path) bool   { return !p.Unreachable }
func unreachable(p Path) bool { return p.Unreachable }

func (b *bed) setLink(ns *nstest.NS, name string, up bool) {
	b.t.Helper()
	ns.Do(func() {
		set := netlink.LinkSetDown
		if up {
			set = netlink.LinkSetUp
		}
		check(b.t, set(linkByName(b.t, name)))
	})
}

func TestPaths(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.77.0.0/16"), Gw: net.ParseIP("10.0.2.4"), MTU: 1400})
	addRoute(t, b.director, netlink.Route{Dst: cidr("fd00:77::/64"), Gw: net.ParseIP("fd00:2::4"), MTU: 1300})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.78.0.1/32"), Type: unix.RTN_UNREACHABLE})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.78.0.2/32"), Type: unix.RTN_PROHIBIT})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.78.0.3/32"), Type: unix.RTN_BLACKHOLE})
	addRoute(t, b.director, netlink.Route{Dst: cidr("fd00:78::1/128"), Type: unix.RTN_UNREACHABLE})
	w := b.wiring(WiringConfig{})
	_, err := w.Apply(Target{VIPs: both.VIPs, RIPs: addrs("10.0.2.2", "fd00:2::2", "10.77.0.1", "fd00:77::1", "10.78.0.1", "10.78.0.2", "10.78.0.3",
		"fd00:78::1", "10.79.0.1", "fd00:79::1", "10.0.2.1", "fd00:2::1", "10.96.0.10", "10.0.2.255")})
	check(t, err)
	paths, err := w.Paths()
	check(t, err)

	addr := netip.MustParseAddr
	for rip, want := range map[string]Path{
		"10.0.2.2":   {MTU: 1500, Source: addr("10.0.2.1"), Interface: "dr"},
		"fd00:2::2":  {MTU: 1500, Source: addr("fd00:2::1"), Interface: "dr"},
		"10.77.0.1":  {MTU: 1400, Source: addr("10.0.2.1"), Interface: "dr", Gateway: addr("10.0.2.4")},
		"fd00:77::1": {MTU: 1300, Source: addr("fd00:2::1"), Interface: "dr", Gateway: addr("fd00:2::4")},
		"10.78.0.1":  {Unreachable: true, Reason: "an unreachable route covers it"},
		"10.78.0.2":  {Unreachable: true, Reason: "a prohibit route covers it"},
		"10.78.0.3":  {Unreachable: true, Reason: "a blackhole route covers it"},
		"fd00:78::1": {Unreachable: true, Reason: "an unreachable route covers it"},
		"10.79.0.1":  {Unreachable: true, Reason: "no route leads to it"},
		"fd00:79::1": {Unreachable: true, Reason: "no route leads to it"},
		"10.0.2.1":   {MTU: 65536, Source: addr("10.0.2.1"), Interface: "lo", Unreachable: true, Reason: "it is an address of the director itself"},
		"10.96.0.10": {Unreachable: true, Reason: "it is a VIP, so packets for it come back to the director"},
		"10.0.2.255": {Unreachable: true, Reason: "it is a broadcast address"},
	} {
		if got := paths.Servers[addr(rip)]; got != want {
			t.Errorf("path to %s:\n got %+v\nwant %+v", rip, got, want)
		}
	}
	if !paths.Servers[addr("fd00:2::1")].Unreachable {
		t.Errorf("path to the director's own fd00:2::1: %+v", paths.Servers[addr("fd00:2::1")])
	}
	var owned []netip.Prefix
	for _, vip := range both.VIPs {
		owned = append(owned, netip.PrefixFrom(vip, vip.BitLen()))
	}
	slices.SortFunc(owned, netip.Prefix.Compare)
	if !slices.Equal(paths.Owned, owned) {
		t.Errorf("owned: %v, want %v", paths.Owned, owned)
	}
	for _, own := range addrs("127.0.0.1", "::1", "10.0.1.1", "10.0.2.1", "fd00:1::1", "fd00:2::1") {
		if !slices.Contains(paths.Local, own) {
			t.Errorf("local: %v lacks %s", paths.Local, own)
		}
	}
	if !paths.SendLocal {
		t.Error("SendLocal is not set")
	}
}

// TestPathMTU has a router behind dr tell of a narrower link.
func TestPathMTU(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	b.server.Do(func() {
		check(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644))
		narrow := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "narrow"}, Mode: netlink.TUNTAP_MODE_TUN, Queues: 1, NonPersist: true}
		check(t, netlink.LinkAdd(narrow))
		t.Cleanup(func() { narrow.Fds[0].Close() })
		check(t, netlink.LinkSetMTU(narrow, 1300))
		check(t, netlink.LinkSetUp(narrow))
		for _, prefix := range []string{"10.77.0.0/16", "fd00:77::/64"} {
			check(t, netlink.RouteAdd(&netlink.Route{Dst: cidr(prefix), LinkIndex: linkByName(t, "narrow").Attrs().Index, Scope: netlink.SCOPE_LINK}))
		}
	})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.77.0.0/16"), Gw: net.ParseIP("10.0.2.4")})
	addRoute(t, b.director, netlink.Route{Dst: cidr("fd00:77::/64"), Gw: net.ParseIP("fd00:2::4")})
	w := b.wiring(WiringConfig{})
	target := Target{VIPs: both.VIPs, RIPs: addrs("10.77.0.1", "fd00:77::1")}
	b.apply(w, target)
	for _, rip := range target.RIPs {
		b.director.Do(func() {
			conn := must(net.Dial("udp", netip.AddrPortFrom(rip, 9).String()))
			defer conn.Close()
			raw := must(conn.(*net.UDPConn).SyscallConn())
			check(t, raw.Control(func(fd uintptr) {
				level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
				if rip.Is6() {
					level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
				}
				check(t, unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO))
			}))
			eventually(t, func() error {
				_, _ = conn.Write(make([]byte, 1400)) // the answer to it is an error of a later one
				paths := must(w.Paths())
				if mtu := paths.Servers[rip].MTU; mtu != 1300 {
					return fmt.Errorf("MTU to %s is %d", rip, mtu)
				}
				return nil
			})
		})
	}
}

// TestOwned has routes into the device of every kind.
func TestOwned(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, Target{VIPs: addrs("10.96.0.10"), RIPs: addrs("10.0.2.2")})
	device := b.index(testDevice)
	for prefix, table := range map[string]int{
		"10.97.0.0/24": 0, "fd00:97::/64": 0,
		"10.98.0.0/24": 200, // which all packets are looked up in
		"10.99.0.0/24": 201, // only those from dr
		"10.95.0.0/24": 202, // none
		"10.94.0.0/24": 100, // our own
	} {
		addRoute(t, b.director, netlink.Route{Dst: cidr(prefix), LinkIndex: device, Table: table, Scope: netlink.SCOPE_LINK})
	}
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.93.0.0/24"), MultiPath: []*netlink.NexthopInfo{
		{LinkIndex: device}, {LinkIndex: b.index("dc"), Gw: net.ParseIP("10.0.1.2")}}})
	b.director.Do(func() {
		rule := netlink.NewRule()
		rule.Priority, rule.Table = 300, 200
		check(t, netlink.RuleAdd(rule))
		rule = netlink.NewRule()
		rule.Priority, rule.Table, rule.IifName = 301, 201, "dr"
		check(t, netlink.RuleAdd(rule))
	})
	paths, err := w.Paths()
	check(t, err)
	var got []string
	for _, p := range paths.Owned {
		got = append(got, p.String())
	}
	same(t, "owned", []string{"10.93.0.0/24", "10.96.0.10/32", "10.97.0.0/24", "10.98.0.0/24", "fd00:97::/64"}, got)
}

func TestWatchLinks(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	wait := b.watch(w)
	for _, rip := range []string{"10.0.2.2", "fd00:2::2"} {
		wait("at first", serverPath(rip, reachable))
	}
	b.setLink(b.server, "s", false) // takes the carrier away
	for _, rip := range []string{"10.0.2.2", "fd00:2::2"} {
		wait("without carrier", serverPath(rip, unreachable))
	}
	b.setLink(b.server, "s", true)
	for _, rip := range []string{"10.0.2.2", "fd00:2::2"} {
		wait("with carrier again", serverPath(rip, reachable))
	}
	b.setLink(b.director, "dr", false) // takes the routes away
	wait("with dr down", serverPath("10.0.2.2", unreachable))
	b.setLink(b.director, "dr", true)
	wait("with dr up again", serverPath("10.0.2.2", func(p Path) bool { return !p.Unreachable && p.Interface == "dr" }))

	b.director.Do(func() { check(t, netlink.LinkSetMTU(linkByName(t, "dr"), 1400)) })
	wait("with a smaller MTU", serverPath("10.0.2.2", func(p Path) bool { return p.MTU == 1400 }))
	b.sysctl("ipv6/conf/dr/mtu", "1350")
	addAddresses(t, b.director, "dr", "fd00:2::9/64") // setting dr down removed the others
	wait("with a smaller IPv6 MTU", serverPath("fd00:2::2", func(p Path) bool { return p.MTU == 1350 }))
}

func TestWatchRoutes(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	_, err := w.Apply(Target{VIPs: both.VIPs, RIPs: addrs("10.77.0.1", "fd00:77::1")})
	check(t, err)
	wait := b.watch(w)
	for _, c := range []struct{ rip, network, host, gateway string }{
		{"10.77.0.1", "10.77.0.0/16", "10.77.0.1/32", "10.0.2.4"},
		{"fd00:77::1", "fd00:77::/64", "fd00:77::1/128", "fd00:2::4"},
	} {
		rule := `iif "dr" ipproto 0 table 100 protocol 76`
		wait("without a route", serverPath(c.rip, unreachable))
		route := netlink.Route{Dst: cidr(c.network), Gw: net.ParseIP(c.gateway)}
		addRoute(t, b.director, route)
		wait("with a route", serverPath(c.rip, func(p Path) bool { return !p.Unreachable && p.Interface == "dr" }))
		b.has(rule, true)
		block := netlink.Route{Dst: cidr(c.host), Type: unix.RTN_UNREACHABLE}
		addRoute(t, b.director, block)
		wait("with an unreachable route", serverPath(c.rip, unreachable))
		b.director.Do(func() { check(t, netlink.RouteDel(&block)) })
		wait("with it gone", serverPath(c.rip, reachable))
		b.director.Do(func() { check(t, netlink.RouteDel(&route)) })
		wait("without a route again", serverPath(c.rip, unreachable))
		b.has(rule, false)
	}
	wait("remarks", func(p Paths) bool { return len(p.Remarks) == 2 })
}

// has waits until an object that contains a text is there, or is not there.
func (b *bed) has(text string, want bool) {
	b.t.Helper()
	eventually(b.t, func() error {
		lines := b.objects()
		if slices.ContainsFunc(lines, containing(text)) == want {
			return nil
		}
		return &objectsError{text, want, lines}
	})
}

// TestWatchPutsBack takes away what the wiring made, in all the ways that people and programs do.
func TestWatchPutsBack(t *testing.T) {
	b := newBed(t)
	device := b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	whole := b.objects()
	wait := b.watch(w)
	wait("at first", func(p Paths) bool { return len(p.Owned) == len(both.VIPs) })
	restored := func(what string) {
		t.Helper()
		eventually(t, func() error {
			if lines := b.objects(); !slices.Equal(lines, whole) {
				return &objectsError{what, true, lines}
			}
			return nil
		})
	}

	b.setLink(b.director, testDevice, false)
	wait("with the device down", func(p Paths) bool { return len(p.Owned) == 0 })
	if lines := b.objects(); !slices.ContainsFunc(lines, containing("10.96.0.10/32 type 7")) {
		t.Error("with the device down, the backstop is gone")
	}
	b.setLink(b.director, testDevice, true)
	restored("device up again")

	b.director.Do(func() {
		for _, r := range must(netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)) {
			check(t, netlink.RouteDel(&r))
		}
	})
	restored("routes flushed")
	b.director.Do(func() {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			for _, r := range must(netlink.RuleList(family)) {
				if r.Protocol == RouteProtocol {
					r.Family = family
					check(t, netlink.RuleDel(&r))
				}
			}
		}
	})
	restored("rules flushed")
	b.setLink(b.director, "lo", false) // takes unreachable IPv6 routes away
	b.setLink(b.director, "lo", true)
	restored("lo down and up")
	b.setLink(b.director, "dc", false) // takes proxy neighbours and IPv6 addresses away
	b.setLink(b.director, "dc", true)
	addAddresses(t, b.director, "dc", "fd00:1::1/64")
	restored("client's link down and up")
	b.sysctl("ipv4/ip_forward", "0")
	eventually(t, func() error {
		if b.sysctl("ipv4/ip_forward", "") != "1" {
			return &objectsError{"ip_forward", true, nil}
		}
		return nil
	})

	check(t, device.Close())
	b.gone(testDevice)
	b.has("10.96.0.10/32 type 1", false)
	b.device(testDevice)
	restored("device made anew")
}

// TestLostEvents has more events than the socket keeps, before anybody reads them.
func TestLostEvents(t *testing.T) {
	b := newBed(t)
	var e *events
	b.director.Do(func() { e = must(subscribe()) })
	check(t, unix.SetsockoptInt(e.socket.GetFd(), unix.SOL_SOCKET, unix.SO_RCVBUF, 1)) // as small as it gets
	for i := range 100 {
		addRoute(t, b.director, netlink.Route{Dst: ipNet(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 0, byte(i)}), 32)), Type: unix.RTN_BLACKHOLE})
	}
	ended := make(chan error)
	go func() { ended <- e.read() }()
	eventually(t, func() error {
		if noted := change(e.noted.Load()); noted&changedUnknown == 0 {
			return fmt.Errorf("noted: %b", noted)
		}
		return nil
	})
	e.close()
	check(t, <-ended)
}

// TestWatchNeighbours has a server that does not answer, and then does.
func TestWatchNeighbours(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, Target{VIPs: both.VIPs, RIPs: addrs("10.0.2.7", "10.0.2.2", "fd00:2::7", "fd00:2::2")})
	wait := b.watch(w)
	wait("at first", serverPath("10.0.2.7", reachable))
	send := func(addr string) {
		b.director.Do(func() {
			conn := must(net.Dial("udp", net.JoinHostPort(addr, "9")))
			defer conn.Close()
			_, err := conn.Write([]byte("x"))
			check(t, err)
		})
	}
	for _, rip := range []string{"10.0.2.7", "fd00:2::7"} {
		send(rip)
	}
	for _, rip := range []string{"10.0.2.7", "fd00:2::7"} {
		wait("when it did not answer", serverPath(rip, func(p Path) bool { return p.Unreachable && p.Interface == "dr" }))
	}
	// An entry that somebody removes says nothing about the server.
	b.director.Do(func() {
		check(t, netlink.NeighDel(&netlink.Neigh{LinkIndex: b.index("dr"), IP: net.ParseIP("10.0.2.7")}))
	})
	wait("with the entry gone", serverPath("10.0.2.7", unreachable))
	addAddresses(t, b.server, "s", "10.0.2.7/24", "fd00:2::7/64")
	for _, rip := range []string{"10.0.2.7", "fd00:2::7"} {
		wait("when it is there", serverPath(rip, reachable))
	}
	wait("and the others were all the time", serverPath("10.0.2.2", reachable))
}

// TestWatchStarts with a neighbour that failed before.
func TestWatchStarts(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	b.director.Do(func() {
		check(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: b.index("dr"), IP: net.ParseIP("10.0.2.9"), State: netlink.NUD_FAILED}))
	})
	w := b.wiring(WiringConfig{})
	b.apply(w, Target{VIPs: both.VIPs, RIPs: addrs("10.0.2.9")})
	paths, err := w.Paths()
	check(t, err)
	if !serverPath("10.0.2.9", unreachable)(paths) {
		t.Errorf("paths: %+v", paths)
	}
	wait := b.watch(w)
	wait("at first", serverPath("10.0.2.9", unreachable))
	if err := w.Watch(t.Context(), nil); err == nil {
		t.Error("a second Watch was accepted")
	}
}

func TestWatchEndsWithClose(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	wait := b.watch(w)
	wait("at first", func(p Paths) bool { return len(p.Servers) > 0 })
	check(t, w.Close())
	// That Watch returns nil is what the clean-up of b.watch waits for; cancelling its context comes second.
	if _, err := w.Paths(); err == nil {
		t.Error("Paths after Close succeeded")
	}
}

// TestWatchFollowsApply reports new servers without any event.
func TestWatchFollowsApply(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	wait := b.watch(w)
	wait("before Apply", func(p Paths) bool { return len(p.Servers) == 0 && len(p.Local) > 0 })
	b.apply(w, both)
	wait("after Apply", serverPath("10.0.2.3", reachable))

	unwatched := b.wiring(WiringConfig{Manual: true})
	b.apply(unwatched, both)
	if noted := change(unwatched.events.noted.Load()); noted != changedAll {
		t.Errorf("Apply notes %b", noted)
	}
	b.apply(w, Target{VIPs: both.VIPs, RIPs: addrs("10.0.2.2")})
	wait("after a server left", func(p Paths) bool { return len(p.Servers) == 1 })
}
