package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A Hop is who answered a probe of a traceroute.
type Hop struct {
	TTL  int        // of the probe
	From netip.Addr // the zero Addr if nobody answered
	Type icmp.Type  // "time exceeded" on the way; nil if nobody answered, or a UDP service did
	Code int
}

func (h Hop) String() string {
	switch {
	case !h.From.IsValid():
		return fmt.Sprintf("%d *", h.TTL)
	case h.Type == nil:
		return fmt.Sprintf("%d %s answers", h.TTL, h.From)
	}
	return fmt.Sprintf("%d %s %s, code %d", h.TTL, h.From, h.Type, h.Code)
}

func (h Hop) onTheWay() bool {
	return !h.From.IsValid() || h.Type == ipv4.ICMPTypeTimeExceeded || h.Type == ipv6.ICMPTypeTimeExceeded
}

// Each hop gets this many probes, each with so much time for its answer.
const (
	hopProbes  = 3
	hopTimeout = time.Second
)

// TracerouteICMP sends echo requests with a TTL (hop limit) of 1, 2, .. and returns who answered, up to and with the
// first who is not just on the way, or maxHops. Only an answer that quotes the probe as it was sent, to the same address,
// counts. If ctx is done, the hops so far are returned with its error.
func (h *Host) TracerouteICMP(ctx context.Context, to netip.Addr, maxHops int) ([]Hop, error) {
	p, err := h.newProber(ctx, to)
	if err != nil {
		return nil, err
	}
	defer p.close()
	seq := 0
	return h.traceroute(p, maxHops, func(ttl int) (Hop, error) {
		seq++
		if err := p.conn.setTTL(ttl); err != nil {
			return Hop{}, err
		}
		if err := p.conn.SetReadDeadline(time.Now().Add(hopTimeout)); err != nil {
			return Hop{}, err
		}
		if err := p.sendEcho(seq, make([]byte, 32)); err != nil {
			return Hop{}, err
		}
		return p.hop(func(a answer) bool { return a.isEcho(p.id) && a.seq == seq })
	})
}

// TracerouteUDP is TracerouteICMP with datagrams to a port. That a service answers, with any datagram, is an answer too.
func (h *Host) TracerouteUDP(ctx context.Context, to netip.AddrPort, maxHops int) ([]Hop, error) {
	p, err := h.newProber(ctx, to.Addr())
	if err != nil {
		return nil, err
	}
	defer p.close()
	return h.traceroute(p, maxHops, func(ttl int) (Hop, error) { return h.probeUDP(p, to, ttl) })
}

func (h *Host) traceroute(p *prober, maxHops int, probe func(ttl int) (Hop, error)) ([]Hop, error) {
	var hops []Hop
	for ttl := 1; ttl <= maxHops; ttl++ {
		var hop Hop
		for range hopProbes {
			var err error
			if hop, err = probe(ttl); err == nil {
				break
			}
			if !errors.Is(err, errNoAnswer) {
				return hops, fmt.Errorf("host %s: traceroute to %s, TTL %d: %w", h.Name, p.to, ttl, p.reason(err))
			}
		}
		hop.TTL = ttl
		if hops = append(hops, hop); !hop.onTheWay() {
			break
		}
	}
	return hops, nil
}

// hop waits for an answer to a probe.
func (p *prober) hop(wanted func(answer) bool) (Hop, error) {
	a, err := p.answer(wanted)
	if err != nil {
		return Hop{}, err
	}
	hop := Hop{From: a.from}
	switch {
	case a.failure != nil:
		hop.Type, hop.Code = a.failure.Type, a.failure.Code
	case p.to.Is6():
		hop.Type = ipv6.ICMPTypeEchoReply
	default:
		hop.Type = ipv4.ICMPTypeEchoReply
	}
	return hop, nil
}

// probeUDP sends one datagram from a port of its own.
func (h *Host) probeUDP(p *prober, to netip.AddrPort, ttl int) (Hop, error) {
	// An unconnected socket is not told of ICMP errors: what can be read from it is the service's answer.
	network := "udp4"
	if to.Addr().Is6() {
		network = "udp6"
	}
	pc, err := h.ListenPacket(network, ":0")
	if err != nil {
		return Hop{}, err
	}
	c := pc.(*net.UDPConn)
	defer c.Close()
	if to.Addr().Is6() {
		err = ipv6.NewPacketConn(c).SetHopLimit(ttl)
	} else {
		err = ipv4.NewPacketConn(c).SetTTL(ttl)
	}
	if err != nil {
		return Hop{}, err
	}
	if err := p.conn.SetReadDeadline(time.Now().Add(hopTimeout)); err != nil {
		return Hop{}, err
	}
	if _, err := c.WriteToUDPAddrPort(make([]byte, 32), to); err != nil {
		return Hop{}, err
	}

	served := make(chan struct{}, 1)
	go func() {
		defer close(served)
		for buf := make([]byte, 65536); ; {
			_, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if from == to {
				served <- struct{}{}
				_ = p.conn.SetReadDeadline(time.Unix(1, 0)) // no need to wait for an ICMP message any longer
				return
			}
		}
	}()
	port := c.LocalAddr().(*net.UDPAddr).Port
	hop, err := p.hop(func(a answer) bool { return a.protocol == protocolUDP && a.id == port && a.seq == int(to.Port()) })
	c.Close()
	if _, ok := <-served; ok {
		return Hop{From: to.Addr()}, nil
	}
	return hop, err
}
