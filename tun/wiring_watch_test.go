package tun

import (
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// event builds a netlink message.
func event(kind int, header nl.NetlinkRequestData, attributes ...*nl.RtAttr) syscall.NetlinkMessage {
	data := header.Serialize()
	for _, a := range attributes {
		data = append(data, a.Serialize()...)
	}
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: uint16(kind)}, Data: data}
}

func routeEvent(kind int, prefix string, protocol uint8, device, metric, table int, flags uint32) syscall.NetlinkMessage {
	p := netip.MustParsePrefix(prefix)
	header := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Dst_len: uint8(p.Bits()), Protocol: protocol, Type: unix.RTN_UNICAST, Table: uint8(table), Flags: flags}}
	if p.Addr().Is6() {
		header.Family = unix.AF_INET6
	}
	attributes := []*nl.RtAttr{nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(table)))}
	if p.Bits() > 0 {
		attributes = append(attributes, nl.NewRtAttr(unix.RTA_DST, p.Addr().AsSlice()))
	}
	if metric > 0 {
		attributes = append(attributes, nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(metric))))
	}
	if device > 0 {
		attributes = append(attributes, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(device))))
	} else {
		header.Type = unix.RTN_UNREACHABLE
	}
	return event(kind, header, attributes...)
}

func neighbourEvent(kind int, addr string, index, state int) syscall.NetlinkMessage {
	a := netip.MustParseAddr(addr)
	header := &netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(index), State: uint16(state)}
	if a.Is6() {
		header.Family = unix.AF_INET6
	}
	return event(kind, header, nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
}

func addressEvent(kind int, prefix string, index int) syscall.NetlinkMessage {
	p := netip.MustParsePrefix(prefix)
	family := unix.AF_INET
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	header := nl.NewIfAddrmsg(family)
	header.Index, header.Prefixlen = uint32(index), uint8(p.Bits())
	return event(kind, header, nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
}

// TestClassify has the lab follow one VIP and one real server of each family.
func TestClassify(t *testing.T) {
	f := lab()
	target := Target{VIPs: addrs("172.20.0.10", "fd00:96::10"), RIPs: addrs("10.0.2.2", "10.9.0.1", "fd00:2::2")}
	f.ways[target.RIPs[0]] = way{index: 3}
	f.ways[target.RIPs[1]] = way{index: 3, gateway: netip.MustParseAddr("10.0.2.254")}
	f.ways[target.RIPs[2]] = way{index: 3}
	config := WiringConfig{Device: "lvs0"}.withDefaults()
	e := &events{failed: make(map[hop]struct{})}
	e.follow(config, target, f, config.plan(target, f))

	const added, deleted = unix.RTM_NEWROUTE, unix.RTM_DELROUTE
	for _, c := range []struct {
		what  string
		event syscall.NetlinkMessage
		want  change
	}{
		{"our route was added", routeEvent(added, "172.20.0.10/32", RouteProtocol, 9, 0, 254, 0), 0},
		{"our route was removed", routeEvent(deleted, "172.20.0.10/32", RouteProtocol, 9, 0, 254, 0), changedNamespace},
		{"our IPv6 backstop was added", routeEvent(added, "fd00:96::10/128", RouteProtocol, 0, 4196, 254, 0), 0},
		{"our IPv6 backstop was removed", routeEvent(deleted, "fd00:96::10/128", RouteProtocol, 0, 4196, 254, 0), changedNamespace},
		{"our reply route was removed", routeEvent(deleted, "0.0.0.0/0", RouteProtocol, 9, 0, 100, 0), changedNamespace},
		{"we removed a route", routeEvent(deleted, "172.20.0.11/32", RouteProtocol, 9, 0, 254, 0), 0},
		{"another director's route came", routeEvent(added, "172.21.0.10/32", RouteProtocol, 8, 0, 254, 0), 0},
		{"somebody replaced our route", routeEvent(added, "172.20.0.10/32", unix.RTPROT_STATIC, 2, 0, 254, 0), changedNamespace},
		{"somebody routed a network into the device", routeEvent(added, "10.97.0.0/24", unix.RTPROT_STATIC, 9, 0, 254, 0), changedNamespace},
		{"a network of the Internet", routeEvent(added, "198.51.100.0/24", unix.RTPROT_BGP, 2, 20, 254, 0), 0},
		{"the network of a real server", routeEvent(added, "10.8.0.0/13", unix.RTPROT_BGP, 3, 20, 254, 0), changedNamespace},
		{"the network of an IPv6 real server", routeEvent(deleted, "fd00:2::/64", unix.RTPROT_KERNEL, 3, 256, 254, 0), changedNamespace},
		{"a network before it", routeEvent(added, "10.0.0.0/23", unix.RTPROT_BGP, 3, 20, 254, 0), 0},
		{"a network behind it", routeEvent(added, "10.0.3.0/24", unix.RTPROT_BGP, 3, 20, 254, 0), 0},
		{"a default route", routeEvent(added, "0.0.0.0/0", unix.RTPROT_DHCP, 2, 0, 254, 0), changedNamespace | changedDefaults},
		{"a default IPv6 route", routeEvent(deleted, "::/0", unix.RTPROT_RA, 2, 1024, 254, 0), changedNamespace | changedDefaults},
		{"a cloned route", routeEvent(added, "10.0.2.2/32", unix.RTPROT_KERNEL, 3, 0, 254, unix.RTM_F_CLONED), 0},

		{"a neighbour of no interest failed", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.99", 3, netlink.NUD_FAILED), 0},
		{"a server became stale", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.2", 3, netlink.NUD_STALE), 0},
		{"a server failed", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.2", 3, netlink.NUD_FAILED), changedNeighbour},
		{"a server failed again", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.2", 3, netlink.NUD_FAILED), 0},
		{"a failed server is being asked", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.2", 3, netlink.NUD_INCOMPLETE), 0},
		{"a failed server's entry went", neighbourEvent(unix.RTM_DELNEIGH, "10.0.2.2", 3, netlink.NUD_FAILED), changedProbe},
		{"the same address elsewhere came", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.2", 2, netlink.NUD_REACHABLE), 0},
		{"a failed server came back", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.2", 3, netlink.NUD_REACHABLE), changedNeighbour},
		{"a gateway failed", neighbourEvent(unix.RTM_NEWNEIGH, "10.0.2.254", 3, netlink.NUD_FAILED), changedNeighbour},
		{"a server behind it failed as a neighbour", neighbourEvent(unix.RTM_NEWNEIGH, "10.9.0.1", 3, netlink.NUD_FAILED), 0},
		{"an IPv6 server failed", neighbourEvent(unix.RTM_NEWNEIGH, "fd00:2::2", 3, netlink.NUD_FAILED), changedNeighbour},
		{"an entry of no interest went", neighbourEvent(unix.RTM_DELNEIGH, "10.0.2.99", 3, netlink.NUD_FAILED), 0},

		{"an address was refreshed", addressEvent(unix.RTM_NEWADDR, "2001:db8:1::2/64", 2), 0},
		{"an address came", addressEvent(unix.RTM_NEWADDR, "2001:db8:1::3/64", 2), changedNamespace},
		{"an address came to another interface", addressEvent(unix.RTM_NEWADDR, "2001:db8:1::2/64", 3), changedNamespace},
		{"an address went", addressEvent(unix.RTM_DELADDR, "192.168.1.2/24", 2), changedNamespace | changedDefaults},
		{"a link changed", event(unix.RTM_NEWLINK, nl.NewIfInfomsg(0)), changedNamespace | changedDefaults},
	} {
		if got := e.classify(e.filter.Load(), c.event); got != c.want {
			t.Errorf("%s: %b, want %b", c.what, got, c.want)
		}
	}
	failing := e.failing()
	for _, h := range []hop{{netip.MustParseAddr("10.0.2.254"), 3}, {netip.MustParseAddr("fd00:2::2"), 3}} {
		if _, ok := failing[h]; !ok || len(failing) != 2 {
			t.Errorf("failing: %v", failing)
		}
	}
	e.prune(map[int]*link{2: f.links[2]})
	if len(e.failed) != 0 {
		t.Errorf("failed on interfaces that are gone: %v", e.failed)
	}
}

// FuzzClassify reads events that no kernel sends.
func FuzzClassify(f *testing.F) {
	for _, m := range []syscall.NetlinkMessage{
		routeEvent(unix.RTM_NEWROUTE, "172.20.0.10/32", RouteProtocol, 9, 0, 254, 0),
		neighbourEvent(unix.RTM_NEWNEIGH, "fd00:2::2", 3, netlink.NUD_FAILED),
		addressEvent(unix.RTM_NEWADDR, "2001:db8:1::2/64", 2),
		event(unix.RTM_NEWRULE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Type: actionTable}}, nl.NewRtAttr(nl.FRA_IIFNAME, []byte("eth0\x00"))),
	} {
		f.Add(m.Header.Type, m.Data)
	}
	facts := lab()
	target := Target{VIPs: addrs("172.20.0.10", "fd00:96::10"), RIPs: addrs("10.0.2.2", "fd00:2::2")}
	config := WiringConfig{Device: "lvs0"}.withDefaults()
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		for len(data)%unix.NLMSG_ALIGNTO != 0 { // the kernel pads, and the library relies on it
			data = append(data, 0)
		}
		e := &events{failed: make(map[hop]struct{})}
		e.follow(config, target, facts, config.plan(target, facts))
		c := e.classify(e.filter.Load(), syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data})
		if c&^(changedAll|changedProbe) != 0 {
			t.Errorf("%b", c)
		}
	})
}

// TestProxyProtocol reads what the kernel says of proxy neighbours of ours and of somebody else.
func TestProxyProtocol(t *testing.T) {
	b := newBed(t)
	b.director.Do(func() {
		k := must(openKernel())
		defer k.close()
		index := linkByName(t, "dc").Attrs().Index
		ours, theirs := proxy{netip.MustParseAddr("10.0.1.77"), index}, proxy{netip.MustParseAddr("10.0.1.78"), index}
		check(t, k.addProxy(ours))
		check(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: index, IP: net.ParseIP("10.0.1.78"), Flags: netlink.NTF_PROXY}))
		all := must(k.listProxies())
		if own, found := all[ours]; !found || !own {
			t.Errorf("ours: %t %t", found, own)
		}
		if own, found := all[theirs]; !found || own {
			t.Errorf("theirs: %t %t", found, own)
		}
	})
}
