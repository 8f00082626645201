package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Bounds on what Options may ask for; the addresses of a network have no room for more.
const (
	MaxClients = 10
	MaxServers = 80
)

// Options describe a Network. The zero value is one client, a director and three servers.
type Options struct {
	Clients int // 0 for 1
	Servers int // 0 for 3

	PointToPoint bool // a link of its own from the director to each server and client, instead of bridges
	ClientRouter bool // a router between clients and director
	ServerRouter bool // a router between director and servers
	OneNetwork   bool // clients, director and servers share one network; no routers, and always a bridge

	// VIPInClientNetwork makes the VIPs 10.0.1.100 and fd00:1::100, for which clients look in their own network. Somebody
	// has to answer ARP and neighbour solicitations for them.
	VIPInClientNetwork bool

	MTU MTU

	RPFilter     int  // the director's rp_filter: 0, 1 strict or 2 loose
	NoForwarding bool // leave it to others to switch forwarding on in the director
	NoIPv6       bool // IPv4 only, as on a kernel without IPv6
}

// MTU has the MTUs of a Network's networks; 0 stands for 1500. With OneNetwork only Clients counts, and without routers
// only Clients and Servers.
type MTU struct {
	Clients      int // of the clients, and what they are connected to
	ClientRouter int // between the clients' router and the director
	ServerRouter int // between the director and the servers' router
	Servers      int // of the servers, and what they are connected to
}

// A Network is what the package's drawing shows. Its fields are not to be changed.
type Network struct {
	Clients, Servers           []*Host
	Director                   *Host
	ClientRouter, ServerRouter *Host // nil if not asked for

	VIP4, VIP6 netip.Addr // VIP6 is the zero Addr without IPv6
	IPv6       bool       // whether there is IPv6

	// The director's links toward clients and toward servers: dc and dr; dc1, dc2 .. and dr1, dr2 .. where each host has a
	// link of its own; with OneNetwork dc is both.
	ClientLinks, ServerLinks []string

	options   Options
	addBridge func(*Host) error
	hosts     []*Host // all of them, in the order in which they were made
	cables    []cable
}

// New builds a network and returns when all its links can carry packets. If that fails, nothing is left of it.
func New(options Options) (*Network, error) { return newNetwork(options, addBridge) }

func newNetwork(options Options, addBridge func(*Host) error) (*Network, error) {
	if options.Clients == 0 {
		options.Clients = 1
	}
	if options.Servers == 0 {
		options.Servers = 3
	}
	if err := options.validate(); err != nil {
		return nil, fmt.Errorf("build a lab: %w", err)
	}
	n := &Network{options: options, addBridge: addBridge, IPv6: hasIPv6() && !options.NoIPv6}
	if err := n.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("build a lab: %w", err), n.Close())
	}
	return n, nil
}

func (o *Options) validate() error {
	switch {
	case o.Clients < 0 || o.Clients > MaxClients:
		return fmt.Errorf("%d clients: there may be up to %d", o.Clients, MaxClients)
	case o.Servers < 0 || o.Servers > MaxServers:
		return fmt.Errorf("%d servers: there may be up to %d", o.Servers, MaxServers)
	case o.OneNetwork && (o.ClientRouter || o.ServerRouter || o.PointToPoint):
		return errors.New("OneNetwork excludes ClientRouter, ServerRouter and PointToPoint")
	case o.VIPInClientNetwork && o.ClientRouter:
		return errors.New("VIPInClientNetwork excludes ClientRouter: the director would not be in that network")
	}
	return nil
}

func (n *Network) build() error {
	if err := n.makeHosts(); err != nil {
		return err
	}
	n.VIP4, n.VIP6 = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")
	if n.options.VIPInClientNetwork {
		n.VIP4, n.VIP6 = clientNet.address("100")
	}
	if !n.IPv6 {
		n.VIP6 = netip.Addr{}
	}
	if err := n.connectAll(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Second, errors.New("no carrier after 10s"))
	defer cancel()
	for _, h := range n.hosts {
		if err := h.WaitUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) makeHosts() error {
	var err error
	add := func(name string) (h *Host) {
		if err == nil {
			h, err = n.addHost(name)
		}
		return h
	}
	for i := range n.options.Clients {
		n.Clients = append(n.Clients, add("client"+strconv.Itoa(i+1)))
	}
	if n.options.ClientRouter {
		n.ClientRouter = add("client-router")
	}
	n.Director = add("director")
	if n.options.ServerRouter {
		n.ServerRouter = add("server-router")
	}
	for i := range n.options.Servers {
		n.Servers = append(n.Servers, add("server"+strconv.Itoa(i+1)))
	}
	if err != nil {
		return err
	}

	for _, conf := range []string{"all", "default"} {
		if err := n.Director.SetSysctl("net.ipv4.conf."+conf+".rp_filter", strconv.Itoa(n.options.RPFilter)); err != nil {
			return err
		}
	}
	routers := []*Host{n.ClientRouter, n.ServerRouter}
	if !n.options.NoForwarding {
		routers = append(routers, n.Director)
	}
	for _, h := range routers {
		if h == nil {
			continue
		}
		if err := h.SetForwarding(n.IPv6); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) addHost(name string) (*Host, error) {
	h, err := NewHost(name)
	if err != nil {
		return nil, err
	}
	n.hosts = append(n.hosts, h)
	if hasIPv6() && !n.IPv6 {
		for _, conf := range []string{"all", "default"} {
			if err := h.SetSysctl("net.ipv6.conf."+conf+".disable_ipv6", "1"); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
}

// SetForwarding makes a router of the host, for IPv4 and if asked for IPv6.
func (h *Host) SetForwarding(ipv6 bool) error {
	err := h.SetSysctl("net.ipv4.ip_forward", "1")
	if err == nil && ipv6 {
		err = h.SetSysctl("net.ipv6.conf.all.forwarding", "1")
	}
	return err
}

// VIPs returns VIP4 and, where there is IPv6, VIP6.
func (n *Network) VIPs() []netip.Addr {
	if n.IPv6 {
		return []netip.Addr{n.VIP4, n.VIP6}
	}
	return []netip.Addr{n.VIP4}
}

// Hosts returns all hosts: clients, director, servers, routers, and the switches that hold the bridges.
func (n *Network) Hosts() []*Host { return n.hosts }

// SetMTU sets the MTU of a client or server and of what it is connected to: the other end of its link. Where that is a
// bridge, the other hosts on it do not learn of the change and their larger packets are lost; Options.MTU sets the MTU
// of a whole network.
func (n *Network) SetMTU(h *Host, mtu int) error {
	for _, c := range n.cables {
		if c.a != h && c.b != h {
			continue
		}
		if err := errors.Join(c.a.SetMTU(c.aLink, mtu), c.b.SetMTU(c.bLink, mtu)); err != nil {
			return err
		}
	}
	return nil
}

// SetOffload switches checksum and segmentation offload of every link in the network, as [Host.SetOffload] does.
func (n *Network) SetOffload(on bool) error {
	for _, c := range n.cables {
		if err := errors.Join(c.a.SetOffload(c.aLink, on), c.b.SetOffload(c.bLink, on)); err != nil {
			return err
		}
	}
	return nil
}

// Close closes every host. Only the first call does anything.
func (n *Network) Close() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}
