package balancer

import (
	"net/netip"
	"slices"
	"time"
)

// Conn is a connection as it is shown.
type Conn struct {
	Protocol Protocol
	Client   netip.AddrPort // CIP and port
	Virtual  netip.AddrPort // VIP and port
	Server   netip.AddrPort // RIP and port
	State    string         // as ipvsadm names it
	Expires  time.Duration  // when it ends if no packet comes
	Requests uint32         // packets from the client
}

// Connections calls visit for every connection at the time now, until it returns false. Connections that come or go
// meanwhile may be missed. visit runs without locks and may take its time.
func (d *Director) Connections(now time.Duration, visit func(Conn) bool) {
	t := ticksOf(now)
	var batch []Conn
	for i := range d.conns.shard {
		sh := &d.conns.shard[i]
		batch = slices.Grow(batch[:0], 16)
		sh.Lock()
		sh.each(func(f *family, n uint32) {
			if !f.at(n).expired(t) {
				batch = append(batch, f.view(n, t))
			}
		})
		sh.Unlock()
		for _, c := range batch {
			if !visit(c) {
				return
			}
		}
	}
}

func (f *family) view(n uint32, now tick) Conn {
	r := f.at(n)
	client, vip, rip := f.addrs(n)
	return Conn{
		Protocol: Protocol(r.protocol),
		Client:   netip.AddrPortFrom(client.Netip(), r.clientPort),
		Virtual:  netip.AddrPortFrom(vip.Netip(), r.vipPort),
		Server:   netip.AddrPortFrom(rip.Netip(), r.serverPort),
		State:    stateName(r.protocol, r.state),
		Expires:  (r.timeout - (now - r.last)).duration(),
		Requests: r.packets,
	}
}
