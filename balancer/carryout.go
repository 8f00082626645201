package balancer

import "github.com/lvsd/lvsd/stack"

// carryOut does with a packet what was decided.
func (w *Worker) carryOut(p *stack.Packet, f *fate) {
	switch f.action {
	case actDrop:
		w.drop(f.reason)
	case actPass:
		w.counters.passed++
		w.send(p)
	case actToServer:
		w.countRequest(p, f.server)
		w.sendToServer(p, f)
	case actToClient:
		w.countReply(p, f.server)
		p.SetSource(f.addr, f.port)
		w.send(p)
	case actErrorToServer:
		w.countRequest(p, f.server)
		p.RewriteErrorToServer(f.addr, f.port)
		w.disguise(p, f)
		w.send(p)
	case actErrorToClient:
		w.countReply(p, f.server)
		p.RewriteErrorToClient(f.addr, f.port)
		w.send(p)
	default:
		w.answer(p, f.action, 0)
	}
}

// send sends a packet on, its TTL as if it had come this way without the detour through the director.
func (w *Worker) send(p *stack.Packet) {
	p.RestoreTTL()
	w.emit(p.Frame())
}

// sendToServer translates a request, unless the way to its server has no room for it. What the director's own kernel
// would say then is about an address that the client does not know, so it is said here, from the VIP (ipvs.md 5.10).
func (w *Worker) sendToServer(p *stack.Packet, f *fate) {
	path := f.server.path.Load()
	switch {
	case p.TTL() == 0:
		w.answer(p, actTimeExceeded, 0)
	case path.Unreachable:
		w.answer(p, actNoHost, 0)
	case path.MTU != 0 && p.Len() > path.MTU && p.DontFragment() && p.LargestSegment() > path.MTU:
		w.answer(p, actTooBig, path.MTU)
	default:
		p.SetDestination(f.addr, f.port)
		w.send(p)
	}
}

// disguise gives an ICMP error that the director's own host made another source, if need be: a packet that comes out of
// a device in the host's own name is refused.
func (w *Worker) disguise(p *stack.Packet, f *fate) {
	env := w.snapshot.env
	if _, local := env.local[p.Flow.Src]; !local {
		return
	}
	source := p.Quoted.Dst // the client: not there, but surely on the far side
	if s := f.server.path.Load().Source; env.sendLocal && s.IsValid() {
		source = stack.AddrFrom(s)
	}
	p.SetErrorSource(source)
}

// answer makes the packet an answer to its sender, and sends it.
func (w *Worker) answer(p *stack.Packet, a action, mtu int) {
	if p.Kind == stack.KindLaterFragment && a != actEcho && (a != actTooBig || !p.Answerable()) {
		w.drop(dropFragmentRefused) // the answer to the first fragment is enough
		return
	}
	if !w.mayAnswer(p, a) {
		w.drop(dropRateLimited)
		return
	}
	switch a {
	case actEcho:
		p.ReplyEcho()
	case actReset:
		p.ReplyReset()
	case actNoPort:
		p.ReplyUnreachable(stack.UnreachablePort)
	case actNoProtocol:
		p.ReplyUnreachable(stack.UnreachableProtocol)
	case actNoHost:
		p.ReplyUnreachable(stack.UnreachableHost)
	case actTimeExceeded:
		p.ReplyTimeExceeded()
	case actTooBig:
		p.ReplyTooBig(mtu)
	}
	w.counters.answers[a]++
	w.send(p)
}

// mayAnswer asks the limiter. Like Linux, it bounds errors by address, but not those that path MTU discovery needs.
func (w *Worker) mayAnswer(p *stack.Packet, a action) bool {
	l := &w.director.limiter
	l.Lock()
	defer l.Unlock()
	switch a {
	case actEcho, actReset, actTooBig:
		return l.Allow(w.now)
	}
	return l.AllowTo(p.Flow.Src, w.now)
}

// countRequest and countReply count a packet for its server, before and after the translation alike: whole IP packets.
// A removed server counts no more (ipvs.md section 8).
func (w *Worker) countRequest(p *stack.Packet, srv *server) {
	if srv.available.Load() {
		t := &w.counters.traffic[srv.number]
		t.InPackets++
		t.InBytes += uint64(p.Len())
	}
}

func (w *Worker) countReply(p *stack.Packet, srv *server) {
	if srv.available.Load() {
		t := &w.counters.traffic[srv.number]
		t.OutPackets++
		t.OutBytes += uint64(p.Len())
	}
}
