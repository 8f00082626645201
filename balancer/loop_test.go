package balancer

import (
	"strings"
	"testing"

	"github.com/lvsd/lvsd/stack"
)

// TestNothingIsSentBackToUs: a packet for an address that is routed into the director comes back to it. An answer may,
// for it is never answered again; a packet that is sent on would go round. Such packets have a source that is ours, which
// an ordinary network does not let in.
func TestNothingIsSentBackToUs(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		vip2 := r.service
		vip2.Address, vip2.Servers = r.end("vip2"), []ServerSpec{r.serverSpec("rs2")}
		r.apply(func(s *Spec) { s.Services = append(s.Services, vip2) })
		r.own()
		what := map[Protocol]string{TCP: "SYN", UDP: "UDP"}[r.service.Protocol]
		for _, text := range []string{
			"vip2 -> vip WHAT",
			"rs1 -> vip2 WHAT", // what the server of that one answers
			"owned -> vip WHAT",
			"rs1 -> owned WHAT",
			"rs1 -> vip2 unreachable-port {vip2 -> rs1 WHAT}",
		} {
			text = strings.ReplaceAll(text, "WHAT", what)
			answers := len(r.Status().Answers)
			var p stack.Packet
			for _, frame := range r.forward(r.book.frame(r, text)) {
				if p.Decode(frame) != stack.NoProblem {
					r.Fatalf("%s became % x", text, frame)
				}
				if r.snapshot.Load().owns(p.Flow.Dst) && len(r.Status().Answers) == answers {
					r.Errorf("%s became %s, which comes back", text, p.Flow)
				}
			}
		}
	})
}

// TestAnswersAreNotAnswered takes every kind of answer through the director again, from an address of ours.
func TestAnswersAreNotAnswered(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers()
		r.own()
		for _, text := range []string{
			"owned -> vip PING", "owned -> closed SYN", "owned -> closed ACK", "owned -> closed UDP", "owned -> vip protocol=47",
			"owned -> vip SYN", "owned -> vip UDP",
		} {
			frames := r.forward(r.book.frame(r, text))
			for rounds := 0; len(frames) > 0; rounds++ {
				if rounds > 1 {
					r.Fatalf("%s goes round: %s", text, r.book.read(r, frames[0]))
				}
				frames = r.forward(frames...)
			}
		}
	})
}
