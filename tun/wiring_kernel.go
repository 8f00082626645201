package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The objects that a director owns, as comparable values, and how the kernel is asked for them. Every one carries
// RouteProtocol. The netlink library does the talking; where it cannot say something (the protocol of a proxy
// neighbour, the IP protocol of a rule as the single byte that it is), a message is put together from its parts.

// objects are all routes, rules and proxy neighbours that a director wants or has.
type objects struct {
	routes  map[route]struct{}
	rules   map[rule]struct{}
	proxies map[proxy]struct{}
}

func newObjects() objects {
	return objects{make(map[route]struct{}), make(map[rule]struct{}), make(map[proxy]struct{})}
}

// route leads a prefix into a device, or is unreachable.
type route struct {
	prefix netip.Prefix
	table  int
	metric int
	device int // index of the outgoing interface; 0 for an unreachable route
}

// defaultMetric is what the kernel gives a route without a metric.
func defaultMetric(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1024
}

func (r route) String() string {
	s := fmt.Sprintf("route %s", r.prefix)
	if r.device == 0 {
		s = fmt.Sprintf("unreachable route %s", r.prefix)
	}
	if r.table != unix.RT_TABLE_MAIN {
		s += fmt.Sprintf(" in table %d", r.table)
	}
	return s
}

// rule sends what comes in by an interface through a table.
type rule struct {
	v6       bool
	iif      string
	from     netip.Addr // if valid, only packets from there
	icmp     bool       // only ICMP or ICMPv6
	priority int
	table    int
}

func (r rule) String() string {
	s := "rule iif " + r.iif
	if r.from.IsValid() {
		s += fmt.Sprintf(" from %s", r.from)
	}
	if r.icmp {
		s += " ipproto " + icmpName(r.v6)
	}
	return s + fmt.Sprintf(" lookup %d", r.table)
}

func icmpName(v6 bool) string {
	if v6 {
		return "ipv6-icmp"
	}
	return "icmp"
}

// proxy is an address that an interface answers ARP or neighbour discovery for.
type proxy struct {
	addr  netip.Addr
	index int // of the interface
}

// kernel talks to the kernel about the network namespace in which it was opened.
type kernel struct {
	*netlink.Handle
	filtered *netlink.Handle          // its dumps are filtered by the kernel, where that is new enough (4.20)
	parts    map[int]*nl.SocketHandle // for messages of our own making
	sysctls  *sysctls
	announce *announcer
}

func openKernel() (k *kernel, err error) {
	k = &kernel{announce: openAnnouncer()}
	defer func() {
		if err != nil {
			k.close()
			k, err = nil, fmt.Errorf("open a netlink socket: %w", err)
		}
	}()
	if k.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return
	}
	if k.filtered, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return
	}
	if err := k.filtered.SetStrictCheck(true); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return k, err
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	k.parts = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
	k.sysctls, err = openSysctls()
	return
}

func (k *kernel) close() {
	if k.Handle != nil {
		k.Handle.Close()
	}
	if k.filtered != nil {
		k.filtered.Close()
	}
	for _, s := range k.parts {
		s.Close()
	}
	if k.sysctls != nil {
		k.sysctls.close()
	}
	k.announce.close()
}

// request begins a message of our own making.
func (k *kernel) request(kind, flags int) *nl.NetlinkRequest {
	return &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: uint16(kind), Flags: uint16(unix.NLM_F_REQUEST | flags)},
		Sockets:  k.parts,
	}
}

// complete repeats a dump that was interrupted by a change, a few times. What is incomplete after that is taken as it
// is: the changes are events, which make Watch look again.
func complete(dump func() error) error {
	var err error
	for range 5 {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}

// listRoutes returns the routes of all tables that match a filter with a protocol or an interface.
func (k *kernel) listRoutes(filter netlink.Route, mask uint64) (routes []netlink.Route, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		before := len(routes)
		err := complete(func() error {
			routes = routes[:before]
			return k.filtered.RouteListFilteredIter(family, &filter, mask|netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
				routes = append(routes, r)
				return true
			})
		})
		if err != nil && !noFamily(family, err) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
	}
	return routes, nil
}

// noFamily tells whether an error says that the kernel has no IPv6.
func noFamily(family int, err error) bool {
	return family == unix.AF_INET6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP))
}

// message turns a route into what the library sends.
func (r route) message() *netlink.Route {
	m := &netlink.Route{
		Dst:       ipNet(r.prefix),
		Table:     r.table,
		Priority:  r.metric,
		Protocol:  RouteProtocol,
		LinkIndex: r.device,
		Type:      unix.RTN_UNREACHABLE,
		Scope:     netlink.SCOPE_UNIVERSE,
	}
	if r.device != 0 {
		m.Type, m.Scope = unix.RTN_UNICAST, netlink.SCOPE_LINK
	}
	return m
}

func (k *kernel) addRoute(r route) error { return k.RouteAdd(r.message()) }

func (k *kernel) deleteRoute(r route) error {
	m := r.message()
	m.Scope = netlink.SCOPE_NOWHERE // any
	return gone(k.RouteDel(m))
}

// gone makes light of an error that says that there is nothing to delete.
func gone(err error) error {
	for _, e := range []error{unix.ESRCH, unix.ENOENT, unix.ENODEV} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// foundRule is a rule in the kernel, ours or not. The rule in it is complete only if it is ours.
type foundRule struct {
	rule
	protocol int
	selects  bool // it has conditions that our rules never have
}

func (k *kernel) listRules() (rules []foundRule, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		before := len(rules)
		err := complete(func() error {
			rules = rules[:before]
			req := k.request(unix.RTM_GETRULE, unix.NLM_F_DUMP)
			req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}})
			messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
			for _, m := range messages {
				if r, ok := parseRule(m); ok {
					rules = append(rules, r)
				}
			}
			return err
		})
		if err != nil && !noFamily(family, err) {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
	}
	return rules, nil
}

const actionTable = 1 // FR_ACT_TO_TBL: look into a table

// parseRule reads an RTM_NEWRULE or RTM_DELRULE, which is a struct fib_rule_hdr (laid out like a struct rtmsg) with
// attributes. It skips rules that do not lead into a table.
func parseRule(m []byte) (foundRule, bool) {
	if len(m) < unix.SizeofRtMsg {
		return foundRule{}, false
	}
	header := nl.DeserializeRtMsg(m)
	attributes, err := nl.ParseRouteAttr(m[unix.SizeofRtMsg:])
	if err != nil || header.Type != actionTable || header.Family != unix.AF_INET && header.Family != unix.AF_INET6 {
		return foundRule{}, false
	}
	r := foundRule{rule: rule{v6: header.Family == unix.AF_INET6, table: int(header.Table)}}
	r.selects = header.Flags&netlink.FibRuleInvert != 0 || header.Tos != 0
	for _, a := range attributes {
		switch a.Attr.Type {
		case nl.FRA_TABLE:
			r.table = number(a.Value)
		case nl.FRA_PRIORITY:
			r.priority = number(a.Value)
		case nl.FRA_IIFNAME:
			r.iif = unix.ByteSliceToString(a.Value)
		case nl.FRA_PROTOCOL:
			r.protocol = int(firstByte(a.Value))
		case nl.FRA_SRC:
			r.from, _ = netip.AddrFromSlice(a.Value)
			r.selects = r.selects || int(header.Src_len) != r.from.BitLen()
		case nl.FRA_IP_PROTO:
			r.icmp = firstByte(a.Value) == icmpProtocol(r.v6)
			r.selects = r.selects || !r.icmp
		case nl.FRA_DST, nl.FRA_FWMARK, nl.FRA_TUN_ID, nl.FRA_OIFNAME, nl.FRA_UID_RANGE, nl.FRA_SPORT_RANGE, nl.FRA_DPORT_RANGE:
			r.selects = true
		}
	}
	return r, true
}

func icmpProtocol(v6 bool) byte {
	if v6 {
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}

// addRule adds a rule that is known not to be there. The kernel does not help to find out: asked to add no duplicate, it
// takes a rule without a source address for a duplicate of one with.
func (k *kernel) addRule(r rule) error { return k.changeRule(r, unix.RTM_NEWRULE, unix.NLM_F_CREATE) }

// deleteRule deletes a rule. The kernel deletes the first that has all that is asked for, if it also has a source
// address that was not asked for. So rules with and without one must differ in something else, see narrowPriority.
func (k *kernel) deleteRule(r rule) error { return gone(k.changeRule(r, unix.RTM_DELRULE, 0)) }

func (k *kernel) changeRule(r rule, kind, flags int) error {
	req := k.request(kind, flags|unix.NLM_F_ACK)
	header := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Type: actionTable}}
	if r.v6 {
		header.Family = unix.AF_INET6
	}
	req.AddData(header)
	if r.from.IsValid() {
		header.Src_len = uint8(r.from.BitLen())
		req.AddData(nl.NewRtAttr(nl.FRA_SRC, r.from.AsSlice()))
	}
	req.AddData(nl.NewRtAttr(nl.FRA_IIFNAME, nl.ZeroTerminated(r.iif)))
	req.AddData(nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(r.priority))))
	req.AddData(nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(r.table))))
	req.AddData(nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(RouteProtocol)))
	if r.icmp {
		req.AddData(nl.NewRtAttr(nl.FRA_IP_PROTO, nl.Uint8Attr(icmpProtocol(r.v6))))
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// listProxies returns all proxy neighbours, and whether they are of our protocol. A kernel that does not keep the
// protocol of a proxy neighbour (before 4.20) has none of ours.
func (k *kernel) listProxies() (map[proxy]bool, error) {
	proxies := make(map[proxy]bool)
	err := complete(func() error {
		clear(proxies)
		req := k.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddData(&netlink.Ndmsg{Flags: netlink.NTF_PROXY})
		messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
		for _, m := range messages {
			if n, ok := parseNeighbour(m); ok && n.flags&netlink.NTF_PROXY != 0 {
				proxies[proxy{n.addr, n.index}] = n.protocol == RouteProtocol
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list proxy neighbours: %w", err)
	}
	return proxies, nil
}

func (k *kernel) addProxy(p proxy) error {
	return k.changeProxy(p, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
}

func (k *kernel) deleteProxy(p proxy) error { return gone(k.changeProxy(p, unix.RTM_DELNEIGH, 0)) }

func (k *kernel) changeProxy(p proxy, kind, flags int) error {
	req := k.request(kind, flags|unix.NLM_F_ACK)
	family := unix.AF_INET
	if p.addr.Is6() {
		family = unix.AF_INET6
	}
	req.AddData(&netlink.Ndmsg{Family: uint8(family), Index: uint32(p.index), State: netlink.NUD_PERMANENT, Flags: netlink.NTF_PROXY})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, p.addr.AsSlice()))
	req.AddData(nl.NewRtAttr(netlink.NDA_PROTOCOL, nl.Uint8Attr(RouteProtocol)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// neighbour is an entry of the neighbour table, proxies among them.
type neighbour struct {
	addr     netip.Addr
	index    int // of the interface
	state    int
	flags    int
	protocol int
}

func parseNeighbour(m []byte) (neighbour, bool) {
	const header = 12 // struct ndmsg: family, 3 bytes of padding, index, state, flags, type
	if len(m) < header {
		return neighbour{}, false
	}
	attributes, err := nl.ParseRouteAttr(m[header:])
	if err != nil {
		return neighbour{}, false
	}
	if m[0] != unix.AF_INET && m[0] != unix.AF_INET6 {
		return neighbour{}, false // of a bridge
	}
	native := nl.NativeEndian()
	n := neighbour{index: int(int32(native.Uint32(m[4:]))), state: int(native.Uint16(m[8:])), flags: int(m[10])}
	for _, a := range attributes {
		switch a.Attr.Type {
		case netlink.NDA_DST:
			n.addr, _ = netip.AddrFromSlice(a.Value)
		case netlink.NDA_PROTOCOL:
			n.protocol = int(firstByte(a.Value))
		}
	}
	return n, n.addr.IsValid()
}

// hop is a neighbour that packets are handed to.
type hop struct {
	addr  netip.Addr
	index int
}

// failedNeighbours returns the neighbours that did not answer when the kernel asked for them.
func (k *kernel) failedNeighbours() (map[hop]struct{}, error) {
	failed := make(map[hop]struct{})
	err := complete(func() error {
		clear(failed)
		req := k.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddData(&netlink.Ndmsg{})
		messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
		for _, m := range messages {
			if n, ok := parseNeighbour(m); ok && n.state == netlink.NUD_FAILED {
				failed[hop{n.addr, n.index}] = struct{}{}
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	return failed, nil
}

// probe makes the kernel ask for a neighbour as if there were a packet for it.
func (k *kernel) probe(h hop) error {
	return k.NeighSet(&netlink.Neigh{LinkIndex: h.index, IP: h.addr.AsSlice(), Flags: netlink.NTF_USE, State: netlink.NUD_NONE})
}

// number reads an attribute that is a number of four bytes.
func number(b []byte) int {
	if len(b) != 4 {
		return 0
	}
	return int(nl.NativeEndian().Uint32(b))
}

func firstByte(b []byte) byte {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf reads a prefix as the library has it.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if a = a.Unmap(); !ok || a.BitLen() != size {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, bits), true
}

// addrOf reads an address as the library has it. It is not valid if there is none.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
