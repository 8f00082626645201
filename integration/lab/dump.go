package lab

import (
	"fmt"
	"io"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Dump writes what is to know of each host of the network, for a test that failed: see [Host.Dump].
func (n *Network) Dump(w io.Writer) {
	for _, h := range n.hosts {
		h.Dump(w)
	}
}

// Dump writes the host's links, addresses, rules, routes of all tables, neighbours, and the protocol counters that are
// not 0. What cannot be read is said in its place.
func (h *Host) Dump(w io.Writer) {
	fmt.Fprintf(w, "== %s\n", h.Name)
	links, err := h.handle.LinkList()
	complain(w, "links", err)
	names := map[int]string{0: "-"}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		fmt.Fprintf(w, "link %s %s mtu %d %s %s %s\n", a.Name, l.Type(), a.MTU, a.Flags, a.OperState, a.HardwareAddr)
		if s := a.Statistics; s != nil {
			fmt.Fprintf(w, "     rx %d packets, %d bytes, %d errors, %d dropped; tx %d packets, %d bytes, %d errors, %d dropped\n",
				s.RxPackets, s.RxBytes, s.RxErrors, s.RxDropped, s.TxPackets, s.TxBytes, s.TxErrors, s.TxDropped)
		}
		addrs, err := h.handle.AddrList(l, netlink.FAMILY_ALL)
		complain(w, "addresses", err)
		for _, addr := range addrs {
			fmt.Fprintf(w, "     address %s\n", addr.IPNet)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		h.dumpFamily(w, family, names)
	}
	counters, err := h.Counters()
	complain(w, "counters", err)
	fmt.Fprintf(w, "counters %s\n", counters.Since(nil))
}

func (h *Host) dumpFamily(w io.Writer, family int, links map[int]string) {
	rules, err := h.handle.RuleList(family)
	complain(w, "rules", err)
	for _, r := range rules {
		fmt.Fprintln(w, formatRule(r))
	}
	routes, err := h.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	complain(w, "routes", err)
	for _, r := range routes {
		fmt.Fprintln(w, formatRoute(r, links))
	}
	neighbours, err := h.handle.NeighList(0, family)
	complain(w, "neighbours", err)
	proxies, err := h.handle.NeighProxyList(0, family)
	complain(w, "proxy neighbours", err)
	for _, n := range append(neighbours, proxies...) {
		kind := ""
		if n.Flags&netlink.NTF_PROXY != 0 {
			kind = " proxy"
		}
		fmt.Fprintf(w, "neighbour %s %s %s state %#x%s\n", n.IP, links[n.LinkIndex], n.HardwareAddr, n.State, kind)
	}
}

func formatRule(r netlink.Rule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "rule %d:", r.Priority)
	if r.Src != nil {
		fmt.Fprintf(&b, " from %s", r.Src)
	}
	if r.Dst != nil {
		fmt.Fprintf(&b, " to %s", r.Dst)
	}
	if r.IifName != "" {
		fmt.Fprintf(&b, " iif %s", r.IifName)
	}
	if r.OifName != "" {
		fmt.Fprintf(&b, " oif %s", r.OifName)
	}
	if r.Mark != 0 {
		fmt.Fprintf(&b, " fwmark %#x", r.Mark)
	}
	if r.IPProto != 0 {
		fmt.Fprintf(&b, " ipproto %d", r.IPProto)
	}
	fmt.Fprintf(&b, " lookup %d protocol %d", r.Table, r.Protocol)
	return b.String()
}

// routeTypes are the names that rtnetlink(7) gives to route types.
var routeTypes = [...]string{"unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable",
	"prohibit", "throw", "nat"}

func formatRoute(r netlink.Route, links map[int]string) string {
	var b strings.Builder
	kind := fmt.Sprint(r.Type)
	if r.Type >= 0 && r.Type < len(routeTypes) {
		kind = routeTypes[r.Type]
	}
	fmt.Fprintf(&b, "route table %d %s %s", r.Table, kind, r.Dst)
	if r.Gw != nil {
		fmt.Fprintf(&b, " via %s", r.Gw)
	}
	if r.Src != nil {
		fmt.Fprintf(&b, " src %s", r.Src)
	}
	fmt.Fprintf(&b, " link %s scope %s metric %d protocol %s", links[r.LinkIndex], r.Scope, r.Priority, r.Protocol)
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	return b.String()
}

func complain(w io.Writer, what string, err error) {
	if err != nil {
		fmt.Fprintf(w, "! %s: %v\n", what, err)
	}
}
