package balancer

import (
	"github.com/lvsd/lvsd/stack"
)

// This file is the way of a packet, from top to bottom: decode, decide its fate, carry it out.

func (w *Worker) forward(frame []byte) {
	p := &w.packet
	if problem := p.Decode(frame); problem != stack.NoProblem {
		w.drop(DropReason(problem))
		return
	}
	if p.Fragmented {
		w.forwardFragment(p)
		return
	}
	var f fate
	w.decide(p, &f)
	w.carryOut(p, &f)
}

// forwardFragment decides about a first fragment, and does with the later ones of its datagram what was done with it.
func (w *Worker) forwardFragment(p *stack.Packet) {
	fragments := w.director.fragments
	if p.Kind == stack.KindLaterFragment {
		f, verdict := fragments.Later(p, w.now)
		if verdict == stack.FragmentKnown {
			w.carryOut(p, &f)
		} else if verdict != stack.FragmentHeld {
			w.drop(fragmentDrops[verdict])
		}
		return
	}
	var f fate
	w.decide(p, &f)
	waited, verdict := fragments.First(p, f, w.now)
	if verdict != stack.FragmentKnown {
		w.drop(fragmentDrops[verdict])
		return
	}
	w.carryOut(p, &f)
	for _, frame := range waited {
		if p.Decode(frame) == stack.NoProblem {
			w.carryOut(p, &f)
		}
	}
}

var fragmentDrops = [...]DropReason{
	stack.FragmentDuplicate: dropFragmentDuplicate,
	stack.FragmentOverlap:   dropFragmentOverlap,
	stack.FragmentNoRoom:    dropFragmentNoRoom,
}

// decide says what is to become of a packet that has its transport header. It changes the connection table, never the
// packet.
func (w *Worker) decide(p *stack.Packet, f *fate) {
	balanced := p.Kind == stack.KindTCP || p.Kind == stack.KindUDP
	switch {
	case balanced && w.decideKnown(p, f):
	case p.Kind == stack.KindError:
		*f = w.decideError(p)
	case !w.snapshot.owns(p.Flow.Dst):
		f.action = actPass
	case w.snapshot.owns(p.Flow.Src): // nobody has that address; an answer to it would come back
		*f = dropped(dropSpoofedSource)
	case balanced:
		w.decideNew(p, f)
	case p.Kind == stack.KindEcho:
		f.action = actEcho
	case p.Flow.Protocol == stack.ProtocolICMP, p.Flow.Protocol == stack.ProtocolICMPv6:
		*f = dropped(dropUnwanted)
	default:
		f.action = actNoProtocol
	}
}

// decideKnown looks for the packet's connection in the direction that the destination makes likely, then in the other.
// It tells whether there is one that decides.
func (w *Worker) decideKnown(p *stack.Packet, f *fate) bool {
	if w.snapshot.hint.likely(p.Flow.Dst) {
		return w.decideRequest(p, f) || w.decideReply(p, f)
	}
	return w.decideReply(p, f) || w.decideRequest(p, f)
}

// decideRequest is ipvs.md 5.2, steps 3 to 7, for a packet of a known connection.
func (w *Worker) decideRequest(p *stack.Packet, f *fate) bool {
	k := requestKey(p.Flow)
	sh, fam, tag := w.director.conns.locate(&k)
	sh.Lock()
	defer sh.Unlock()
	n, ok := fam.find(tag, &k)
	return ok && w.continueConn(p, fam, n, f)
}

// continueConn takes a request on with its connection, or ends the connection and returns false. The shard must be
// locked.
func (w *Worker) continueConn(p *stack.Packet, fam *family, n uint32, f *fate) bool {
	r := fam.at(n)
	srv := w.server(r.server)
	if r.expired(w.tick) || w.reusable(p, r, srv) {
		w.director.end(fam, n, srv)
		return false
	}
	if !srv.available.Load() {
		if w.snapshot.tunables.ExpireNodestConn {
			w.director.end(fam, n, srv)
			return false
		}
		*f = dropped(dropServerRemoved)
		return true
	}
	w.advance(r, srv, request, p.TCPFlags)
	r.packets++
	f.action, f.port, f.server = actToServer, r.serverPort, srv
	_, _, f.addr = fam.addrs(n)
	return true
}

// reusable tells whether a SYN on an existing connection is the start of another one (ipvs.md 4.2).
func (w *Worker) reusable(p *stack.Packet, r *record, srv *server) bool {
	if p.TCPFlags&stack.FlagSYN == 0 {
		return false
	}
	t := &w.snapshot.tunables
	return t.ExpireNodestConn && srv.Weight() == 0 ||
		t.ConnReuseMode != 0 && (r.state == tcpTimeWait || r.state == tcpClose)
}

// decideReply is ipvs.md 5.6, step 3.
func (w *Worker) decideReply(p *stack.Packet, f *fate) bool {
	k := replyKey(p.Flow)
	sh, fam, tag := w.director.conns.locate(&k)
	sh.Lock()
	defer sh.Unlock()
	n, ok := fam.find(tag, &k)
	if !ok {
		return false
	}
	r := fam.at(n)
	srv := w.server(r.server)
	if r.expired(w.tick) {
		w.director.end(fam, n, srv)
		return false
	}
	w.advance(r, srv, reply, p.TCPFlags)
	f.action, f.port, f.server = actToClient, r.vipPort, srv
	_, f.addr, _ = fam.addrs(n)
	return true
}

// advance takes a connection to the state that a packet leads to and starts its timeout anew. The shard must be locked.
func (w *Worker) advance(r *record, srv *server, dir direction, flags uint8) {
	r.state = nextState(r.protocol, r.state, dir, flags)
	r.timeout = w.snapshot.timeouts.of(r.protocol, r.state)
	r.last = w.tick
	if active := tcpActive[r.state]; active != r.active {
		r.active = active
		if active {
			srv.AddActive(1)
		} else {
			srv.AddActive(-1)
		}
	}
}

// decideNew is ipvs.md 5.4: a packet for an address of ours, of no connection. What IPVS leaves to the host behind it
// is answered as that host would.
func (w *Worker) decideNew(p *stack.Packet, f *fate) {
	f.action = actNoPort
	if p.Kind == stack.KindTCP {
		if p.TCPFlags&stack.FlagRST != 0 {
			*f = dropped(dropStrayReset)
			return
		}
		f.action = actReset
		if p.TCPFlags&stack.FlagSYN == 0 && !w.snapshot.tunables.SloppyTCP {
			return
		}
	}
	svc := w.snapshot.services[serviceKey{p.Flow.Dst, p.Flow.DstPort, p.Flow.Protocol}]
	const ftpDataPort = 20 // never scheduled
	if svc == nil || p.Flow.SrcPort == ftpDataPort {
		return
	}
	srv := svc.schedule(p.Flow)
	if srv == nil {
		f.action = actNoPort // for TCP too (ipvs.md 5.5)
		return
	}
	w.connect(p, srv, f)
}

// connect makes the connection of a client's first packet with a server, unless another worker has just made it.
func (w *Worker) connect(p *stack.Packet, srv *server, f *fate) {
	k := requestKey(p.Flow)
	conns := w.director.conns
	sh, fam, tag := conns.locate(&k)
	sh.Lock()
	defer sh.Unlock()
	if n, ok := fam.find(tag, &k); ok && w.continueConn(p, fam, n, f) {
		return
	}
	n, ok := conns.insert(fam, tag, &k, srv.addr, srv.port)
	if !ok {
		*f = dropped(dropNoRoomInTable)
		return
	}
	r := fam.at(n)
	r.server, r.packets = srv.number, 1
	srv.AddTotal(1)
	w.counters.traffic[srv.number].Conns++
	w.advance(r, srv, request, p.TCPFlags)
	f.action, f.addr, f.port, f.server = actToServer, srv.addr, srv.port, srv
}

// decideError finds the connection that an ICMP error is about (ipvs.md 5.7 and 5.8). An error never keeps a connection
// alive.
func (w *Worker) decideError(p *stack.Packet) fate {
	f, ok := fate{}, false
	if p.HasQuote && p.Quoted.Src == p.Flow.Dst {
		answer := p.Quoted.Reverse()
		if f, ok = w.lookup(requestKey(answer)); ok {
			f.action = actErrorToServer
		} else if f, ok = w.lookup(replyKey(answer)); ok {
			f.action = actErrorToClient
		}
	}
	switch {
	case !ok && !w.snapshot.owns(p.Flow.Dst):
		return fate{action: actPass}
	case !ok:
		return dropped(dropICMPUnrelated)
	case p.Fragmented:
		return dropped(dropICMPFragment)
	case !p.ErrorChecksumValid():
		return dropped(dropICMPChecksum)
	}
	return f
}

// lookup returns the translation of a connection without touching it.
func (w *Worker) lookup(k connKey) (fate, bool) {
	sh, fam, tag := w.director.conns.locate(&k)
	sh.Lock()
	defer sh.Unlock()
	n, ok := fam.find(tag, &k)
	if !ok || fam.at(n).expired(w.tick) {
		return fate{}, false
	}
	r := fam.at(n)
	_, vip, rip := fam.addrs(n)
	f := fate{addr: rip, port: r.serverPort, server: w.server(r.server)}
	if k.dir == reply {
		f.addr, f.port = vip, r.vipPort
	}
	return f, true
}
