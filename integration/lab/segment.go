package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A subnet is an IPv4 /24 and an IPv6 /64 in which addresses end in the same digits.
type subnet struct{ ipv4, ipv6 string }

var (
	clientNet       = subnet{"10.0.1.", "fd00:1::"}
	serverNet       = subnet{"10.0.2.", "fd00:2::"}
	clientRouterNet = subnet{"10.0.3.", "fd00:3::"}
	serverRouterNet = subnet{"10.0.4.", "fd00:4::"}
)

// address returns the subnet's addresses with these last digits: "11" for 10.0.2.11 and fd00:2::11. The gateway is 254,
// and fe in IPv6.
func (s subnet) address(digits string) (ipv4, ipv6 netip.Addr) {
	digits6 := digits
	if digits == gatewayDigits {
		digits6 = "fe"
	}
	return netip.MustParseAddr(s.ipv4 + digits), netip.MustParseAddr(s.ipv6 + digits6)
}

const gatewayDigits = "254"

// A segment is one of the lab's networks: a gateway, and others who use it as their default gateway.
type segment struct {
	name    string
	subnet  subnet
	mtu     int
	gateway station
	others  []station
}

// A station is a host's place in a segment.
type station struct {
	host   *Host
	link   string
	digits string // what its addresses end in

	// offLink keeps the host from sending to others in the segment but through the gateway.
	offLink bool
}

// A cable is a veth pair.
type cable struct {
	a     *Host
	aLink string
	b     *Host
	bLink string
}

// connectAll makes the segments that the options ask for, from the clients to the servers, and the director's routes
// beyond the routers.
func (n *Network) connectAll() error {
	o := n.options
	clients := segment{name: "clients", subnet: clientNet, mtu: o.MTU.Clients}
	for i, h := range n.Clients {
		clients.others = append(clients.others, station{host: h, link: "eth0", digits: strconv.Itoa(1 + i)})
	}
	servers := segment{name: "servers", subnet: serverNet, mtu: o.MTU.Servers}
	for i, h := range n.Servers {
		servers.others = append(servers.others, station{host: h, link: "eth0", digits: strconv.Itoa(11 + i)})
	}

	if o.OneNetwork {
		clients.name = "network"
		clients.gateway = station{host: n.Director, link: "dc", digits: gatewayDigits}
		for _, s := range servers.others {
			s.offLink = true
			clients.others = append(clients.others, s)
		}
		links, err := n.join(clients)
		n.ClientLinks, n.ServerLinks = links, links
		return err
	}

	var err error
	if o.ClientRouter {
		n.ClientLinks, err = n.joinByRouter(clients, n.ClientRouter, "rc", "rr",
			segment{name: "client-router", subnet: clientRouterNet, mtu: o.MTU.ClientRouter}, "dc")
	} else {
		clients.gateway = station{host: n.Director, link: "dc", digits: gatewayDigits}
		n.ClientLinks, err = n.join(clients)
	}
	if err != nil {
		return err
	}
	if o.ServerRouter {
		n.ServerLinks, err = n.joinByRouter(servers, n.ServerRouter, "rr", "rc",
			segment{name: "server-router", subnet: serverRouterNet, mtu: o.MTU.ServerRouter}, "dr")
	} else {
		servers.gateway = station{host: n.Director, link: "dr", digits: gatewayDigits}
		n.ServerLinks, err = n.join(servers)
	}
	return err
}

// joinByRouter makes a segment whose gateway is a router, on its link near, and the segment between that router, on its
// link far, and the director. It returns the director's links.
func (n *Network) joinByRouter(s segment, router *Host, near, far string, between segment, link string) ([]string, error) {
	s.gateway = station{host: router, link: near, digits: gatewayDigits}
	between.gateway = station{host: n.Director, link: link, digits: gatewayDigits}
	between.others = []station{{host: router, link: far, digits: "1"}}
	if _, err := n.join(s); err != nil {
		return nil, err
	}
	links, err := n.join(between)
	if err != nil {
		return nil, err
	}
	to4, to6 := s.subnet.address("0")
	via4, via6 := between.subnet.address("1")
	return links, n.each(to4, to6, via4, via6, func(to, via netip.Addr) error {
		return n.Director.AddRoute(netip.PrefixFrom(to, networkBits(to)), via, "")
	})
}

// join connects a segment's stations, and gives them their addresses and routes. It returns the gateway's links.
func (n *Network) join(s segment) ([]string, error) {
	if len(s.others) == 1 {
		return []string{s.gateway.link}, n.joinPair(s, s.gateway, s.others[0])
	}
	if !n.options.PointToPoint {
		err := n.joinByBridge(s)
		if err == nil {
			return []string{s.gateway.link}, nil
		}
		if !errors.Is(err, errNoBridge) || n.options.OneNetwork {
			return nil, err
		}
	}
	var links []string
	for i, other := range s.others {
		gateway := s.gateway
		gateway.link += strconv.Itoa(i + 1)
		links = append(links, gateway.link)
		if err := n.joinPointToPoint(s, gateway, other); err != nil {
			return nil, err
		}
	}
	return links, nil
}

func (n *Network) joinPair(s segment, gateway, other station) error {
	if err := n.plug(cable{gateway.host, gateway.link, other.host, other.link}, s.mtu); err != nil {
		return err
	}
	if err := n.giveAddresses(s, gateway); err != nil {
		return err
	}
	return n.settle(s, other)
}

// joinPointToPoint connects a station to a link of the gateway that is for this station alone. The gateway has the same
// addresses on all such links, and a host route to each station.
func (n *Network) joinPointToPoint(s segment, gateway, other station) error {
	gateway.offLink, other.offLink = true, true
	if err := n.joinPair(s, gateway, other); err != nil {
		return err
	}
	to4, to6 := s.subnet.address(other.digits)
	return n.each(to4, to6, netip.Addr{}, netip.Addr{}, func(to, _ netip.Addr) error {
		return gateway.host.AddRoute(hostPrefix(to), netip.Addr{}, gateway.link)
	})
}

// errNoBridge says that the kernel was built without bridges, or cannot load the module.
var errNoBridge = errors.New("the kernel has no bridges (CONFIG_BRIDGE)")

// joinByBridge connects the stations to a bridge in a host of its own.
func (n *Network) joinByBridge(s segment) error {
	sw, err := n.addHost("switch-" + s.name)
	if err != nil {
		return err
	}
	if err := n.addBridge(sw); err != nil {
		n.hosts = n.hosts[:len(n.hosts)-1]
		return errors.Join(err, sw.Close())
	}
	for i, st := range append([]station{s.gateway}, s.others...) {
		port := "port" + strconv.Itoa(i)
		if err := n.plug(cable{sw, port, st.host, st.link}, s.mtu); err != nil {
			return err
		}
		if err := sw.changeLink(port, "attach to the bridge", func(l netlink.Link) error {
			bridge, err := sw.Link("bridge")
			if err != nil {
				return err
			}
			return sw.handle.LinkSetMaster(l, bridge)
		}); err != nil {
			return err
		}
	}
	if err := n.giveAddresses(s, s.gateway); err != nil {
		return err
	}
	for _, st := range s.others {
		if err := n.settle(s, st); err != nil {
			return err
		}
	}
	return nil
}

func addBridge(sw *Host) error {
	if hasIPv6() { // the switch has no addresses and says nothing by itself
		if err := sw.SetSysctl("net.ipv6.conf.all.disable_ipv6", "1"); err != nil {
			return err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "bridge"
	snooping := false
	err := sw.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = errNoBridge
	}
	if err != nil {
		return fmt.Errorf("host %s: add a bridge: %w", sw.Name, err)
	}
	return sw.SetUp("bridge")
}

func (n *Network) plug(c cable, mtu int) error {
	if err := Connect(c.a, c.aLink, c.b, c.bLink, mtu); err != nil {
		return err
	}
	n.cables = append(n.cables, c)
	return nil
}

// settle gives a station its addresses and its routes via the gateway.
func (n *Network) settle(s segment, st station) error {
	if err := n.giveAddresses(s, st); err != nil {
		return err
	}
	via4, via6 := s.subnet.address(gatewayDigits)
	return n.each(netip.IPv4Unspecified(), netip.IPv6Unspecified(), via4, via6, func(to, via netip.Addr) error {
		if st.offLink {
			if err := st.host.AddRoute(hostPrefix(via), netip.Addr{}, st.link); err != nil {
				return err
			}
		}
		return st.host.AddRoute(netip.PrefixFrom(to, 0), via, st.link)
	})
}

func (n *Network) giveAddresses(s segment, st station) error {
	ipv4, ipv6 := s.subnet.address(st.digits)
	return n.each(ipv4, ipv6, netip.Addr{}, netip.Addr{}, func(a, _ netip.Addr) error {
		bits := networkBits(a)
		if st.offLink {
			bits = a.BitLen()
		}
		return st.host.AddAddress(st.link, netip.PrefixFrom(a, bits))
	})
}

// each calls f for IPv4 and, if the network has it, for IPv6.
func (n *Network) each(a4, a6, b4, b6 netip.Addr, f func(a, b netip.Addr) error) error {
	if err := f(a4, b4); err != nil || !n.IPv6 {
		return err
	}
	return f(a6, b6)
}

func networkBits(a netip.Addr) int {
	if a.Is4() {
		return 24
	}
	return 64
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
