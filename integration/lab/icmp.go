package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// An ICMPError is the answer of somebody who would not forward or take a packet.
type ICMPError struct {
	From netip.Addr
	Type icmp.Type // an ipv4.ICMPType or ipv6.ICMPType
	Code int
	MTU  int // of a "packet too big" of IPv6
}

func (e *ICMPError) Error() string { return fmt.Sprintf("%s says %s, code %d", e.From, e.Type, e.Code) }

// A Pong is an answer to an echo request.
type Pong struct {
	From netip.Addr
	TTL  int // what was left of it
	RTT  time.Duration
}

// Ping sends an echo request with 56 bytes of data, and again each half second, until one is answered, with the same
// data, or ctx is done. An ICMP error that quotes a request is returned as an [*ICMPError].
func (h *Host) Ping(ctx context.Context, to netip.Addr) (Pong, error) {
	return h.PingData(ctx, to, make([]byte, 56))
}

// PingData is Ping with data of any size that fits a packet; the host sends it in fragments if the MTU demands it.
func (h *Host) PingData(ctx context.Context, to netip.Addr, data []byte) (Pong, error) {
	p, err := h.newProber(ctx, to)
	if err != nil {
		return Pong{}, err
	}
	defer p.close()
	for seq := 1; ; seq++ {
		sent := time.Now()
		a, err := p.ping(sent, seq, data)
		if errors.Is(err, errNoAnswer) {
			continue
		}
		if err != nil {
			return Pong{}, fmt.Errorf("host %s: ping %s: %w", h.Name, to, p.reason(err))
		}
		return Pong{From: a.from, TTL: a.ttl, RTT: time.Since(sent)}, nil
	}
}

func (p *prober) ping(sent time.Time, seq int, data []byte) (answer, error) {
	if err := p.conn.SetReadDeadline(sent.Add(500 * time.Millisecond)); err != nil {
		return answer{}, err
	}
	if err := p.sendEcho(seq, data); err != nil {
		return answer{}, err
	}
	a, err := p.answer(func(a answer) bool { return a.isEcho(p.id) })
	switch {
	case err != nil:
		return answer{}, err
	case a.failure != nil:
		return answer{}, a.failure
	case !bytes.Equal(a.data, data):
		return answer{}, fmt.Errorf("the answer from %s has other data", a.from)
	}
	return a, nil
}

// A prober sends packets to one address and knows their answers among all the ICMP messages that arrive at the host.
type prober struct {
	to   netip.Addr
	id   int // of our echo requests
	conn *icmpConn
	stop func() bool // ends the watch of ctx
	ctx  context.Context
	buf  []byte
}

func (h *Host) newProber(ctx context.Context, to netip.Addr) (*prober, error) {
	network, address := "ip4:1", "0.0.0.0"
	if to.Is6() {
		network, address = "ip6:58", "::"
	}
	c, err := h.ListenPacket(network, address)
	if err != nil {
		return nil, err
	}
	p := &prober{to: to, id: int(rand.N[uint16](1<<16 - 1)), ctx: ctx, buf: make([]byte, 65536)}
	if p.conn, err = newICMPConn(c, to.Is6()); err != nil {
		c.Close()
		return nil, fmt.Errorf("host %s: ICMP socket: %w", h.Name, err)
	}
	p.stop = context.AfterFunc(ctx, func() { c.Close() })
	return p, nil
}

func (p *prober) close() {
	p.stop()
	p.conn.Close()
}

func (p *prober) sendEcho(seq int, data []byte) error {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: data}}
	if p.to.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest // its checksum is the kernel's work
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = p.conn.WriteTo(b, &net.IPAddr{IP: p.to.AsSlice(), Zone: p.to.Zone()})
	return err
}

// An answer is an ICMP message about a packet to the prober's address: an echo reply, or an error that quotes it.
type answer struct {
	from     netip.Addr
	ttl      int
	protocol int // of the packet that was answered
	id       int // of an echo; or the source port
	seq      int // of an echo; or the destination port
	data     []byte
	failure  *ICMPError // nil for an echo reply
}

func (a answer) isEcho(id int) bool {
	return (a.protocol == protocolICMP || a.protocol == protocolICMPv6) && a.id == id
}

const (
	protocolICMP     = 1
	protocolUDP      = 17
	protocolFragment = 44 // IPv6's fragment header
	protocolICMPv6   = 58
)

var errNoAnswer = errors.New("no answer")

// reason is why ctx is done, in place of the error that came of it.
func (p *prober) reason(err error) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	return err
}

// answer returns the first answer that is wanted. If none arrives before the connection's read deadline, it returns
// errNoAnswer.
func (p *prober) answer(wanted func(answer) bool) (answer, error) {
	for {
		n, ttl, from, err := p.conn.read(p.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return answer{}, errNoAnswer
		}
		if err != nil {
			return answer{}, err
		}
		if a, ok := p.parse(p.buf[:n]); ok {
			a.from, a.ttl = from, ttl
			if a.failure != nil {
				a.failure.From = from
			}
			if wanted(a) {
				return a, nil
			}
		}
	}
}

// parse reads an ICMP message. What is no answer to a packet for the prober's address is not for us.
func (p *prober) parse(b []byte) (a answer, ok bool) {
	protocol := protocolICMP
	if p.to.Is6() {
		protocol = protocolICMPv6
	}
	m, err := icmp.ParseMessage(protocol, b)
	if err != nil {
		return answer{}, false
	}
	failure := &ICMPError{Type: m.Type, Code: m.Code}
	var quoted []byte
	switch body := m.Body.(type) {
	case *icmp.Echo:
		if m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
			return answer{}, false
		}
		return answer{protocol: protocol, id: body.ID, seq: body.Seq, data: body.Data}, true
	case *icmp.DstUnreach:
		quoted = body.Data
	case *icmp.TimeExceeded:
		quoted = body.Data
	case *icmp.ParamProb:
		quoted = body.Data
	case *icmp.PacketTooBig:
		quoted, failure.MTU = body.Data, body.MTU
	}
	to, protocol, transport := quotedPacket(quoted, p.to.Is6())
	if to != p.to || len(transport) < 8 {
		return answer{}, false
	}
	a = answer{protocol: protocol, failure: failure}
	switch protocol {
	case protocolICMP, protocolICMPv6:
		a.id, a.seq = int(binary.BigEndian.Uint16(transport[4:])), int(binary.BigEndian.Uint16(transport[6:]))
	default:
		a.id, a.seq = int(binary.BigEndian.Uint16(transport)), int(binary.BigEndian.Uint16(transport[2:]))
	}
	return a, true
}

// quotedPacket reads the packet inside an ICMP error; in IPv6 only one without extension headers but a fragment's.
func quotedPacket(b []byte, is6 bool) (to netip.Addr, protocol int, transport []byte) {
	switch {
	case !is6 && len(b) >= ipv4.HeaderLen:
		length := int(b[0]&0x0f) * 4
		if length < ipv4.HeaderLen || length > len(b) {
			return netip.Addr{}, 0, nil
		}
		return netip.AddrFrom4([4]byte(b[16:20])), int(b[9]), b[length:]
	case is6 && len(b) >= ipv6.HeaderLen:
		next, rest := int(b[6]), b[ipv6.HeaderLen:]
		if next == protocolFragment && len(rest) >= 8 {
			next, rest = int(rest[0]), rest[8:]
		}
		return netip.AddrFrom16([16]byte(b[24:40])), next, rest
	}
	return netip.Addr{}, 0, nil
}

// An icmpConn is a raw ICMP socket of either family.
type icmpConn struct {
	net.PacketConn
	v4 *ipv4.PacketConn
	v6 *ipv6.PacketConn
}

func newICMPConn(c net.PacketConn, is6 bool) (*icmpConn, error) {
	if is6 {
		v6 := ipv6.NewPacketConn(c)
		return &icmpConn{PacketConn: c, v6: v6}, v6.SetControlMessage(ipv6.FlagHopLimit, true)
	}
	v4 := ipv4.NewPacketConn(c)
	return &icmpConn{PacketConn: c, v4: v4}, v4.SetControlMessage(ipv4.FlagTTL, true)
}

func (c *icmpConn) setTTL(ttl int) error {
	if c.v6 != nil {
		return c.v6.SetHopLimit(ttl)
	}
	return c.v4.SetTTL(ttl)
}

func (c *icmpConn) read(b []byte) (n, ttl int, from netip.Addr, err error) {
	var addr net.Addr
	if c.v6 != nil {
		var cm *ipv6.ControlMessage
		if n, cm, addr, err = c.v6.ReadFrom(b); cm != nil {
			ttl = cm.HopLimit
		}
	} else {
		var cm *ipv4.ControlMessage
		if n, cm, addr, err = c.v4.ReadFrom(b); cm != nil {
			ttl = cm.TTL
		}
	}
	if err != nil {
		return 0, 0, netip.Addr{}, err
	}
	from, _ = netip.AddrFromSlice(addr.(*net.IPAddr).IP)
	return n, ttl, from.Unmap(), nil
}
