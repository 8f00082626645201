package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Connect joins two hosts by a veth pair, the ends of which get these names and are set up. An MTU of 0 leaves it at
// 1500.
func Connect(a *Host, aLink string, b *Host, bLink string, mtu int) error {
	err := func() error {
		b.mu.RLock()
		defer b.mu.RUnlock()
		if b.closed {
			return ErrClosed
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = aLink, mtu
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace = bLink, netlink.NsFd(int(b.ns))
		return a.handle.LinkAdd(pair)
	}()
	if err != nil {
		return fmt.Errorf("connect %s of %s to %s of %s, MTU %d: %w", aLink, a.Name, bLink, b.Name, mtu, err)
	}
	if err := a.SetUp(aLink); err != nil {
		return err
	}
	return b.SetUp(bLink)
}

// Link finds a link by its name.
func (h *Host) Link(name string) (netlink.Link, error) {
	link, err := h.handle.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("host %s: find link %s: %w", h.Name, name, err)
	}
	return link, nil
}

// SetUp sets a link up.
func (h *Host) SetUp(link string) error {
	return h.changeLink(link, "set up", h.handle.LinkSetUp)
}

// SetDown sets a link down, as when its cable is pulled out. The routes over it are gone; SetUp does not bring them back.
func (h *Host) SetDown(link string) error {
	return h.changeLink(link, "set down", h.handle.LinkSetDown)
}

// SetMTU sets the MTU of this end of a link; see [Network.SetMTU] for both ends. Below 1280 the link loses IPv6.
func (h *Host) SetMTU(link string, mtu int) error {
	return h.changeLink(link, fmt.Sprintf("set MTU %d of", mtu), func(l netlink.Link) error {
		return h.handle.LinkSetMTU(l, mtu)
	})
}

func (h *Host) changeLink(name, what string, change func(netlink.Link) error) error {
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	if err := change(link); err != nil {
		return fmt.Errorf("host %s: %s link %s: %w", h.Name, what, name, err)
	}
	return nil
}

// AddAddress assigns an address to a link, usable at once. The first of each family becomes the Host's IPv4 or IPv6; it
// must not be called while others read these.
func (h *Host) AddAddress(link string, address netip.Prefix) error {
	l, err := h.Link(link)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(address)}
	if address.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.handle.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("host %s: add address %s to link %s: %w", h.Name, address, link, err)
	}
	first := &h.IPv4
	if address.Addr().Is6() {
		first = &h.IPv6
	}
	if !first.IsValid() {
		*first = address.Addr()
	}
	return nil
}

// AddRoute adds a route. It leads to a gateway if via is valid, and otherwise directly to the link's neighbours. The
// link may be left out where there is a gateway.
func (h *Host) AddRoute(to netip.Prefix, via netip.Addr, link string) error {
	route := &netlink.Route{Dst: ipNet(to)}
	if via.IsValid() {
		route.Gw = via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if link != "" {
		l, err := h.Link(link)
		if err != nil {
			return err
		}
		route.LinkIndex = l.Attrs().Index
	}
	if err := h.handle.RouteAdd(route); err != nil {
		return fmt.Errorf("host %s: add route to %s via %s link %q: %w", h.Name, to, via, link, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// WaitUp waits until every veth that is set up can carry packets, for which its other end has to be up too, and until
// every IPv6 address is in use: even without duplicate address detection the kernel takes a moment for that.
func (h *Host) WaitUp(ctx context.Context) error {
	for {
		waiting, err := h.notUp()
		if err == nil && waiting == "" {
			return nil
		}
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("host %s: list links and addresses: %w", h.Name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("host %s: wait for %s: %w", h.Name, waiting, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// notUp names something that WaitUp has to wait for.
func (h *Host) notUp() (string, error) {
	links, err := h.handle.LinkList()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "veth" && a.Flags&net.FlagUp != 0 && a.OperState != netlink.OperUp {
			return fmt.Sprintf("link %s, which is %s", a.Name, a.OperState), nil
		}
	}
	addrs, err := h.handle.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return fmt.Sprintf("address %s, which is tentative", a.IPNet), nil
		}
	}
	return "", nil
}
