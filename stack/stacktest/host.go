package stacktest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	gicmp "gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/lvsd/lvsd/stack/packettest"
)

// HostOptions are what a host is made with.
type HostOptions struct {
	Name      string       // a word, for diagrams
	Addresses []netip.Addr // one of a family
	Server    bool         // all that it sends goes into the device, as lvsd's rules for real servers' interfaces have it
	TSO       bool         // it sends super-packets and partial checksums
	MTU       int          // of its own interface in bytes; 1500 if 0
	LinkMTU   int          // of the link to it; as MTU if 0
	// Behind are the addresses of a further router between the host and the one with the device, one of a family. It
	// costs a hop, and it is the one that finds LinkMTU too small.
	Behind []netip.Addr
}

// Host is a host with a network stack of its own. Its methods may be called concurrently.
type Host struct {
	Stack *stack.Stack // for what the methods do not offer

	name      string
	addresses []netip.Addr
	server    bool
	linkMTU   int
	behind    *hop
	router    *Router
	number    int
	link      *link
	up, down  *lane
	inbox     chan []byte
	open      context.Context // until close
	shut      context.CancelFunc
	workers   sync.WaitGroup
	closing   sync.Once

	counts HostCounts // guarded by router.mu
}

// HostCounts are what went between the device and a host.
type HostCounts struct {
	ToDevice   Volume // frames of the host that the device took
	FromDevice Volume // frames of the device for the host, before links did anything to them
}

const nic = 1

// AddHost makes a host and connects it.
func (r *Router) AddHost(o HostOptions) (*Host, error) {
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.LinkMTU == 0 {
		o.LinkMTU = o.MTU
	}
	h := &Host{
		name: o.Name, addresses: slices.Clone(o.Addresses), server: o.Server, linkMTU: o.LinkMTU,
		router: r, inbox: make(chan []byte, queueLen),
	}
	h.open, h.shut = context.WithCancel(context.Background())
	if err := r.add(h); err != nil {
		return nil, fmt.Errorf("add host %s: %w", o.Name, err)
	}
	if len(o.Behind) > 0 {
		h.behind = &hop{name: o.Name + "_router", addresses: slices.Clone(o.Behind), send: func(frame []byte) { r.route(h, frame) }}
	}
	h.up = h.newLane(0, h, r.self, h.leave)
	h.down = h.newLane(1, r.self, h, h.arrive)
	h.link = newLink(o.MTU, o.TSO, h.Send)
	if err := h.startStack(); err != nil {
		return nil, fmt.Errorf("add host %s: %w", o.Name, err)
	}
	h.workers.Go(h.receive)
	return h, nil
}

func (h *Host) newLane(direction int, from, to place, out func([]byte)) *lane {
	return &lane{
		faults: &h.router.faults,
		later:  h.router.later,
		out:    out,
		random: rand.New(rand.NewPCG(h.router.seed, uint64(2*h.number+direction))),
		fate: func(frame []byte, what fate) {
			h.router.trace.note(from, to, frame[offloadLen:], string(what))
			h.router.count(func(c *Counts) {
				switch what {
				case lost:
					c.Lost++
				case duplicated:
					c.Duplicated++
				case heldBack:
					c.HeldBack++
				case overflowed:
					c.Overflowed++
				}
			})
		},
	}
}

func (h *Host) startStack() error {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, gicmp.NewProtocol4, gicmp.NewProtocol6},
	})
	s.SetICMPLimit(math.MaxFloat64) // none
	// Waiting for lost segments would be most of what tests do: 200 ms at least, and up to two minutes.
	sack, minRTO, maxRTO := tcpip.TCPSACKEnabled(true), tcpip.TCPMinRTOOption(20*time.Millisecond), tcpip.TCPMaxRTOOption(time.Second)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &minRTO)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &maxRTO)
	h.Stack = s
	if err := s.CreateNIC(nic, h.link); err != nil {
		return fmt.Errorf("make its interface: %s", err)
	}
	for _, a := range h.addresses {
		address := tcpip.ProtocolAddress{Protocol: network(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("give it the address %s: %s", a, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

func (h *Host) String() string { return h.name }

// close ends the host's stack and all that is open in it.
func (h *Host) close() {
	h.closing.Do(func() {
		h.shut()
		h.Stack.Close()
		h.workers.Wait()
		h.Stack.Wait()
	})
}

// Send sends a frame as if the host's stack had made it, with any addresses. It owns the frame.
func (h *Host) Send(frame []byte) { h.up.pass(frame) }

// leave is where frames of the host come out of its link.
func (h *Host) leave(frame []byte) {
	if h.behind != nil && !h.router.takeHop(h.behind, h, frame) {
		return
	}
	h.router.route(h, frame)
}

// arrive is where packets for the host come out of its link.
func (h *Host) arrive(frame []byte) {
	select {
	case h.inbox <- frame[offloadLen:]:
	default:
		h.down.fate(frame, overflowed)
	}
}

// receive hands packets to the stack. The sender cannot do it: it may be inside another stack, or the same one.
func (h *Host) receive() {
	for {
		select {
		case packet := <-h.inbox:
			if err := packettest.Verify(packet); err != nil {
				h.router.violation(packet, "a packet that is not sound reached %s: %w", h, err)
			}
			h.link.receive(packet)
		case <-h.open.Done():
			return
		}
	}
}

// Counts returns what was counted so far.
func (h *Host) Counts() HostCounts {
	h.router.mu.Lock()
	defer h.router.mu.Unlock()
	return h.counts
}

// Refused returns how many packets the host's stack itself did not take because of a checksum or a length.
func (h *Host) Refused() uint64 {
	s := h.Stack.Stats()
	return s.TCP.ChecksumErrors.Value() + s.TCP.InvalidSegmentsReceived.Value() +
		s.UDP.ChecksumErrors.Value() + s.UDP.MalformedPacketsReceived.Value() + s.IP.MalformedPacketsReceived.Value() +
		s.ICMP.V4.PacketsReceived.Invalid.Value() + s.ICMP.V6.PacketsReceived.Invalid.Value()
}

// Addr returns the host's address of the family that another address is of.
func (h *Host) Addr(like netip.Addr) netip.Addr {
	i := slices.IndexFunc(h.addresses, func(a netip.Addr) bool { return a.Is4() == like.Is4() })
	if i < 0 {
		return netip.Addr{}
	}
	return h.addresses[i]
}

// DialTCP connects to an address. Errors are those of package net: errors.Is(err, syscall.ECONNREFUSED) and so on.
func (h *Host) DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.open, cancel)()
	c, err := gonet.DialContextTCP(ctx, h.Stack, fullAddress(to), network(to.Addr()))
	if err != nil {
		return nil, fmt.Errorf("%s connects to %s: %w", h, to, withErrno(err))
	}
	return tcpConn{c}, nil
}

// ListenTCP listens at one of the host's addresses.
func (h *Host) ListenTCP(at netip.AddrPort) (net.Listener, error) {
	l, err := gonet.ListenTCP(h.Stack, fullAddress(at), network(at.Addr()))
	if err != nil {
		return nil, withErrno(err)
	}
	return tcpListener{l}, nil
}

func network(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func addrPort(a tcpip.FullAddress) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.Addr.AsSlice())
	return netip.AddrPortFrom(addr, a.Port)
}
