package balancer

import (
	"net/netip"
	"strings"
	"testing"
)

// connected opens a connection of c1 with rs1 and returns what one packet of it is called.
func (r *rig) connected() (what string) {
	r.Helper()
	if r.service.Protocol == UDP {
		r.script(`c1 -> vip UDP => c1 -> rs1 UDP`)
		return "UDP"
	}
	r.script(scriptsTo["ESTABLISHED"])
	return "ACK"
}

// about runs a script in which WHAT is a packet of the rig's protocol.
func (r *rig) about(what, script string) {
	r.Helper()
	r.script(strings.ReplaceAll(script, "WHAT", what))
}

// TestErrorsAboutReplies is ipvs.md 5.7: from the client's side, about what the VIP sent. They go to the server, and
// quote what the server sent. Their source stays.
func TestErrorsAboutReplies(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		before := r.server("rs1").Traffic
		r.about(what, `
			router -> vip too-big=1300 {vip -> c1 WHAT} ttl=9   => router -> rs1 too-big=1300 {rs1 -> c1 WHAT} ttl=10
			c1 -> vip unreachable-port {vip -> c1 WHAT}         => c1 -> rs1 unreachable-port {rs1 -> c1 WHAT}
			router -> vip unreachable-host {vip -> c1 WHAT len=1400} => router -> rs1 unreachable-host {rs1 -> c1 WHAT}
			router -> vip time-exceeded {vip -> c1 WHAT ttl=1}  => router -> rs1 time-exceeded {rs1 -> c1 WHAT}
		`)
		after := r.server("rs1").Traffic
		if after.InPackets != before.InPackets+4 || after.OutPackets != before.OutPackets || after.Conns != before.Conns {
			r.Errorf("counted %+v, before %+v", after, before)
		}
	})
}

// TestErrorsAboutRequests is ipvs.md 5.8: from the servers' side, about what the client sent. They come from the VIP,
// whoever made them, and quote what the client sent.
func TestErrorsAboutRequests(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		before := r.server("rs1").Traffic
		r.about(what, `
			rs1 -> c1 unreachable-port {c1 -> rs1 WHAT} ttl=9   => vip -> c1 unreachable-port {c1 -> vip WHAT} ttl=10
			router -> c1 too-big=1300 {c1 -> rs1 WHAT len=1400} => vip -> c1 too-big=1300 {c1 -> vip WHAT}
			router -> c1 time-exceeded {c1 -> rs1 WHAT}         => vip -> c1 time-exceeded {c1 -> vip WHAT}
			rs2 -> c1 unreachable-host {c1 -> rs1 WHAT}         => vip -> c1 unreachable-host {c1 -> vip WHAT}
		`)
		after := r.server("rs1").Traffic
		if after.OutPackets != before.OutPackets+4 || after.InPackets != before.InPackets || after.Conns != before.Conns {
			r.Errorf("counted %+v, before %+v", after, before)
		}
	})
}

// TestShortQuotations: the least that RFC 792 asks for are 8 bytes behind the IP header.
func TestShortQuotations(t *testing.T) {
	for network, short := range map[string]string{"tcp4": "28", "udp4": "28", "tcp6": "48", "udp6": "48"} {
		r := newRig(t, network)
		protocol := r.service.Protocol
		quoted := map[Protocol]string{TCP: "TCP", UDP: "UDP"}[protocol]
		r.about(r.connected(), strings.NewReplacer("SHORT", short, "CUT", quoted).Replace(`
			router -> vip time-exceeded {vip -> c1 WHAT len=1400} quote=SHORT => router -> rs1 time-exceeded {rs1 -> c1 CUT}
			router -> c1 time-exceeded {c1 -> rs1 WHAT len=1400} quote=SHORT  => vip -> c1 time-exceeded {c1 -> vip CUT}
		`))
	}
}

// TestErrorsOfNoConnection are answered by nobody: for an address of ours they are dropped, any other is sent on.
func TestErrorsOfNoConnection(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		r.about(what, `
			router -> vip too-big=1300 {vip -> c2 WHAT}     => drop icmp_unrelated
			router -> vip too-big=1300 {closed -> c1 WHAT}  => drop icmp_unrelated
			router -> vip too-big=1300 {c1 -> vip WHAT}     => drop icmp_unrelated    # not what the VIP sent
			router -> vip too-big=1300 {rs1 -> c1 WHAT}     => drop icmp_unrelated
			router -> vip too-big=1300 {vip -> c1 protocol=47}  => drop icmp_unrelated
			rs1 -> vip unreachable-port {vip -> rs1 WHAT}   => drop icmp_unrelated
			rs1 -> c1 unreachable-port {c1 -> rs2 WHAT}     => rs1 -> c1 unreachable-port {c1 -> rs2 WHAT}
			rs1 -> c2 unreachable-port {c2 -> rs1 WHAT}     => rs1 -> c2 unreachable-port {c2 -> rs1 WHAT}
			rs1 -> other unreachable-port {c1 -> rs1 WHAT}  => rs1 -> other unreachable-port {c1 -> rs1 WHAT}
		`)
	})
}

// TestErrorsOfTheOtherProtocol: ports alone do not make an error related.
func TestErrorsOfTheOtherProtocol(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := map[string]string{"ACK": "UDP", "UDP": "ACK"}[r.connected()]
		r.about(what, `
			router -> vip too-big=1300 {vip -> c1 WHAT}     => drop icmp_unrelated
			rs1 -> c1 unreachable-port {c1 -> rs1 WHAT}     => rs1 -> c1 unreachable-port {c1 -> rs1 WHAT}
		`)
	})
}

// TestErrorsKeepNothingAlive: neither timer nor state of the connection moves.
func TestErrorsKeepNothingAlive(t *testing.T) {
	r := newRig(t, "tcp4")
	r.script(scriptsTo["ESTABLISHED"] + `
		wait 10m
		router -> vip too-big=1300 {vip -> c1 ACK}          => router -> rs1 too-big=1300 {rs1 -> c1 ACK}
		rs1 -> c1 unreachable-port {c1 -> rs1 RST}          => vip -> c1 unreachable-port {c1 -> vip RST}
		conn c1 -> vip ESTABLISHED 5m0s
		wait 5m
		router -> vip too-big=1300 {vip -> c1 ACK}          => drop icmp_unrelated
		rs1 -> c1 unreachable-port {c1 -> rs1 ACK}          => rs1 -> c1 unreachable-port {c1 -> rs1 ACK}
	`)
}

// TestErrorsAboutRemovedServers: without expire_nodest_conn the connection is known as long as it lives, and its errors
// are translated, but count for nobody.
func TestErrorsAboutRemovedServers(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`tune expire_nodest_conn 0`)
		what := r.connected()
		total := r.Status().Total
		r.about(what, `
			remove rs1
			router -> vip too-big=1300 {vip -> c1 WHAT}     => router -> rs1 too-big=1300 {rs1 -> c1 WHAT}
			rs1 -> c1 unreachable-port {c1 -> rs1 WHAT}     => vip -> c1 unreachable-port {c1 -> vip WHAT}
		`)
		if got := r.Status().Total; got != total {
			r.Errorf("counted %+v, before %+v", got, total)
		}
		r.about(what, `
			tune expire_nodest_conn 1
			expire
			router -> vip too-big=1300 {vip -> c1 WHAT}     => drop icmp_unrelated
			rs1 -> c1 unreachable-port {c1 -> rs1 WHAT}     => rs1 -> c1 unreachable-port {c1 -> rs1 WHAT}
		`)
	})
}

// TestErrorsWithBadChecksum: a translated error gets a checksum anew, so one that was wrong must not be translated.
func TestErrorsWithBadChecksum(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.about(r.connected(), `
			router -> vip too-big=1300 {vip -> c1 WHAT} badsum  => drop icmp_bad_checksum
			rs1 -> c1 unreachable-port {c1 -> rs1 WHAT} badsum  => drop icmp_bad_checksum
			router -> vip too-big=1300 {vip -> c2 WHAT} badsum  => drop icmp_unrelated
			router -> vip too-big=1300 {vip -> c1 WHAT} partial => router -> rs1 too-big=1300 {rs1 -> c1 WHAT}
		`)
	})
}

// TestErrorsAboutWrongChecksums: what the quotation says of its transport checksum is translated, not judged.
func TestErrorsAboutWrongChecksums(t *testing.T) {
	r := newRig(t, "udp4")
	r.script(`
		c1 -> vip UDP       => c1 -> rs1 UDP
		rs1 -> c1 unreachable-port {c1 -> rs1 UDP nosum}    => vip -> c1 unreachable-port {c1 -> vip UDP}
	`)
}

// TestErrorsInFragments are dropped: an error with a checksum that cannot be verified cannot be translated.
func TestErrorsInFragments(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		for text, dropped := range map[string]bool{
			"router -> vip too-big=1300 {vip -> c1 " + what + " len=400}":       true,
			"rs1 -> c1 unreachable-port {c1 -> rs1 " + what + " len=400}":       true,
			"rs1 -> other unreachable-port {other -> rs1 " + what + " len=400}": false,
		} {
			frames := r.fragments(text, 200)
			before := r.Status()
			out := r.forward(frames...)
			after := r.Status()
			if drops := after.Drops["icmp_fragment"] - before.Drops["icmp_fragment"]; dropped {
				if len(out) != 0 || drops != uint64(len(frames)) {
					r.Errorf("%s: %d fragments came out, %d of %d were counted", text, len(out), drops, len(frames))
				}
			} else if len(out) != len(frames) {
				r.Errorf("%s: %d of %d fragments came out", text, len(out), len(frames))
			}
		}
	})
}

// TestErrorsOfTheDirectorsOwnHost: the host of the director refuses packets from outside in its own name, so its errors
// about replies get another source, unless it can send them. Errors about requests come from the VIP anyway.
func TestErrorsOfTheDirectorsOwnHost(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		local, rip := r.end("director").Addr(), r.end("rs1").Addr()
		toward := netip.MustParseAddr(map[bool]string{true: "192.168.1.2", false: "fd00:b::2"}[local.Is4()])
		const toServer = `director -> vip unreachable-host {vip -> c1 WHAT}    => `
		for _, c := range []struct {
			name   string
			env    Environment
			source string
		}{
			{"not known as local", Environment{}, "director"},
			{"no way to send it", Environment{Local: []netip.Addr{local}}, "c1"},
			{"no way to send it, source known", Environment{
				Local: []netip.Addr{local}, Paths: map[netip.Addr]Path{rip: {Source: toward}},
			}, "c1"},
			{"can send", Environment{
				Local: []netip.Addr{local}, Paths: map[netip.Addr]Path{rip: {Source: toward}}, SendLocal: true,
			}, toward.String()},
			{"can send, source unknown", Environment{Local: []netip.Addr{local}, SendLocal: true}, "c1"},
		} {
			r.SetEnvironment(c.env)
			r.about(what, toServer+c.source+` -> rs1 unreachable-host {rs1 -> c1 WHAT}
				director -> c1 unreachable-host {c1 -> rs1 WHAT}            => vip -> c1 unreachable-host {c1 -> vip WHAT}
				router -> vip unreachable-host {vip -> c1 WHAT}             => router -> rs1 unreachable-host {rs1 -> c1 WHAT}
			`)
		}
	})
}

// fragments cuts a packet into fragments of size bytes.
func (r *rig) fragments(text string, size int) [][]byte {
	r.Helper()
	return fragmentsOf(r.book.frame(r, text), uint32(r.book.parse(r, text).number("id", 77)), size)
}
