package balancer

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestRemovedServerByDefault is ipvs.md 5.3 with expire_nodest_conn: its connections end at once, and their next packets
// are treated as if there had been none.
func TestRemovedServerByDefault(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		r.script(scriptsTo["ESTABLISHED"] + `
			c2 -> vip SYN   => c2 -> rs2 SYN
			c3 -> vip SYN   => c3 -> rs1 SYN
			remove rs1
			conn c1 -> vip none
			conn c3 -> vip none
			conn c2 -> vip SYN_RECV 1m0s
			rs1 -> c1 ACK   => rs1 -> c1 ACK            # none of ours
			c1 -> vip ACK   => vip -> c1 RST
			c1 -> vip SYN   => c1 -> rs2 SYN
			c3 -> vip SYN   => c3 -> rs2 SYN
			counts rs2 3/0
		`)
	}, "tcp4", "tcp6")
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		r.script(`
			c1 -> vip UDP   => c1 -> rs1 UDP
			remove rs1
			conn c1 -> vip none
			c1 -> vip UDP   => c1 -> rs2 UDP
			rs1 -> c1 UDP   => rs1 -> c1 UDP
			rs2 -> c1 UDP   => vip -> c1 UDP
			counts rs2 0/1
		`)
	}, "udp4", "udp6")
}

// TestRemovedServerAsInTheKernel is ipvs.md 5.3 without expire_nodest_conn: requests vanish and do not keep the
// connection alive; replies pass.
func TestRemovedServerAsInTheKernel(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		r.script(`tune expire_nodest_conn 0` + scriptsTo["ESTABLISHED"] + `
			remove rs1
			conn c1 -> vip ESTABLISHED 15m0s
			wait 10m
			c1 -> vip ACK   => drop server_removed
			c1 -> vip SYN   => drop server_removed
			c1 -> vip RST   => drop server_removed
			expire
			conn c1 -> vip ESTABLISHED 5m0s
			rs1 -> c1 ACK   => vip -> c1 ACK
			conn c1 -> vip ESTABLISHED 15m0s
			c2 -> vip SYN   => c2 -> rs2 SYN
			rs1 -> c1 FIN+ACK   => vip -> c1 FIN+ACK
			wait 2m
			c1 -> vip SYN   => c1 -> rs2 SYN
		`)
	}, "tcp4", "tcp6")
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		r.script(`
			tune expire_nodest_conn 0
			c1 -> vip UDP   => c1 -> rs1 UDP
			remove rs1
			wait 1m
			c1 -> vip UDP   => drop server_removed
			conn c1 -> vip UDP 4m0s
			rs1 -> c1 UDP   => vip -> c1 UDP
		`)
	}, "udp4", "udp6")
	t.Run("a SYN on a finished connection", func(t *testing.T) {
		r := newRig(t, "tcp4")
		r.setServers("rs1", "rs2")
		r.script(`tune expire_nodest_conn 0` + scriptsTo["TIME_WAIT"] + `
			remove rs1
			c1 -> vip ACK   => drop server_removed
			c1 -> vip SYN   => c1 -> rs2 SYN
		`)
	})
}

// TestExpireNodestConnTakesEffectLater: turned on after the removal, it ends the connections at the next Expire, or with
// the next request.
func TestExpireNodestConnTakesEffectLater(t *testing.T) {
	for _, last := range []string{"expire", "c1 -> vip ACK => vip -> c1 RST"} {
		r := newRig(t, "tcp4")
		r.setServers("rs1", "rs2")
		r.script(`tune expire_nodest_conn 0` + scriptsTo["ESTABLISHED"] + `
			remove rs1
			tune expire_nodest_conn 1
			` + last + `
			conn c1 -> vip none
		`)
	}
}

// TestServerComesBack is ipvs.md 1.6: a server that is added again to its service has its counters, and its connections
// go on.
func TestServerComesBack(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		r.script(`tune expire_nodest_conn 0` + scriptsTo["ESTABLISHED"])
		before := r.server("rs1").Traffic
		r.script(`
			remove rs1
			c1 -> vip ACK   => drop server_removed
			rs1 -> c1 ACK   => vip -> c1 ACK
			wait 10m
			expire
			set rs1:5
			counts rs1 1/0
			conn c1 -> vip ESTABLISHED 5m0s
		`)
		srv := r.server("rs1")
		if srv.Traffic != before || before.InPackets != 2 || srv.Weight != 5 {
			r.Errorf("the server comes back with %+v, weight %d, had %+v", srv.Traffic, srv.Weight, before)
		}
		r.script(`
			c1 -> vip ACK   => c1 -> rs1 ACK
			rs1 -> c1 ACK   => vip -> c1 ACK
		`)
		if got := r.server("rs1").Traffic; got.InPackets != 3 || got.OutPackets != 1 || got.Conns != 1 {
			r.Errorf("the server counts on to %+v", got)
		}
	}, "tcp4", "tcp6")
}

// TestServiceComesBack is the same for a service that was removed: the connections go on, the counters start at 0.
func TestServiceComesBack(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		r.script(`tune expire_nodest_conn 0` + scriptsTo["ESTABLISHED"])
		service := r.spec.Services
		r.own() // as long as something is routed here
		r.apply(func(s *Spec) { s.Services = nil })
		r.script(`
			c1 -> vip ACK   => drop server_removed
			rs1 -> c1 ACK   => vip -> c1 ACK
		`)
		r.apply(func(s *Spec) { s.Services = service })
		r.script(`
			counts rs1 1/0
			counts rs2 0/0
		`)
		if got := r.Status().Services[0]; got.Traffic != (Traffic{}) || got.Servers[1].Traffic != (Traffic{}) {
			r.Errorf("the service comes back with %+v, its server with %+v", got.Traffic, got.Servers[1].Traffic)
		}
		r.script(`
			c1 -> vip ACK   => c1 -> rs1 ACK
			rs1 -> c1 ACK   => vip -> c1 ACK
		`)
		got := r.server("rs1").Traffic
		if got.InPackets != 1 || got.OutPackets != 1 || got.Conns != 0 || got != r.Status().Services[0].Traffic {
			r.Errorf("the server counts %+v, its service %+v", got, r.Status().Services[0].Traffic)
		}
	}, "tcp4", "tcp6")
}

// TestServerIsForgotten follows the number of a server. It is given back when the server has been without connections
// for two minutes, as Expire sees it, and what its next owner counts is its own.
func TestServerIsForgotten(t *testing.T) {
	r := newRig(t, "tcp4")
	r.setServers("rs2", "rs1")
	r.script(`
		tune expire_nodest_conn 0
		c2 -> vip SYN       => c2 -> rs2 SYN
		c1 -> vip SYN       => c1 -> rs1 SYN
		rs1 -> c1 RST+ACK   => vip -> c1 RST+ACK
	`)
	number := r.numberOf("rs1")
	counted := r.server("rs1").Traffic
	forgotten := func() bool { return r.snapshot.Load().servers[number] == nil }
	r.script(`
		remove rs1
		expire
		wait 9.996s
		expire
		wait 4ms
		expire                 # ends the connection; from here on it is idle
		wait 1m59.999s
		expire
	`)
	if forgotten() {
		r.Fatal("the server is forgotten before two minutes are over")
	}
	service := r.Status().Services[0].Traffic
	r.script(`
		wait 1ms
		expire
	`)
	if !forgotten() || len(r.removed) != 0 {
		r.Fatal("the server is not forgotten after two minutes")
	}
	if got := r.Status().Services[0].Traffic; got != service {
		r.Errorf("the service counted %+v, now %+v", service, got)
	}

	r.script(`set rs3`)
	if got := r.numberOf("rs3"); got != number {
		r.Fatalf("the new server has number %d, want %d again", got, number)
	}
	if got := r.server("rs3").Traffic; got != (Traffic{}) {
		r.Errorf("the new server starts with %+v", got)
	}
	r.script(`
		c3 -> vip SYN   => c3 -> rs3 SYN
		set rs1
	`)
	if got := r.server("rs1").Traffic; got != (Traffic{}) {
		r.Errorf("a server that was forgotten comes back with %+v", got)
	}
	service.add(&Traffic{Conns: 1, InPackets: 1, InBytes: 40})
	if got := r.Status().Services[0].Traffic; got != service || counted.InPackets != 1 {
		r.Errorf("the service counts %+v, want %+v", got, service)
	}
}

func (r *rig) numberOf(server string) uint32 {
	r.Helper()
	for _, srv := range r.snapshot.Load().servers {
		if srv != nil && srv.spec.Address == r.end(server) {
			return srv.number
		}
	}
	r.Fatalf("no server %s", server)
	return 0
}

// TestRemovedServerIsKeptWhileItHasConnections: two idle minutes are counted from the last connection's end.
func TestRemovedServerIsKeptWhileItHasConnections(t *testing.T) {
	r := newRig(t, "tcp4")
	r.script(`tune expire_nodest_conn 0` + scriptsTo["ESTABLISHED"] + `remove rs1`)
	for range 14 {
		r.script(`
			wait 1m
			expire
			rs1 -> c1 ACK => vip -> c1 ACK
		`)
	}
	r.script(`
		wait 15m
		expire
		wait 1m
		expire
		set rs1
	`)
	if r.server("rs1").Traffic.InPackets == 0 {
		r.Error("the server has lost its counters")
	}
}

// TestRemovedAgain: the idle time of a server that came back meanwhile starts anew.
func TestRemovedAgain(t *testing.T) {
	r := newRig(t, "tcp4")
	for range 5 {
		r.script(`
			remove rs1
			expire
			wait 1m50s
			expire
			set rs1
			c1 -> vip SYN => c1 -> rs1 SYN
		`)
	}
	if got := r.server("rs1").Traffic.Conns; got != 5 {
		r.Errorf("the server counts %d connections, want all 5", got)
	}
}

// TestNumbersAreUsedAgain replaces servers for hours: their number stays bounded.
func TestNumbersAreUsedAgain(t *testing.T) {
	r := newRig(t, "tcp4")
	for i := range 200 {
		rip := netip.MustParseAddrPort(fmt.Sprintf("192.168.7.%d:80", i))
		r.edit(func(svc *ServiceSpec) { svc.Servers = []ServerSpec{{Address: rip, Weight: 1}} })
		r.send(fmt.Sprintf("172.16.0.1:%d -> vip SYN", 3000+i))
		r.now += time.Minute
		r.Expire(r.now)
	}
	if n := len(r.snapshot.Load().servers); n > 5 {
		r.Errorf("%d numbers are in use for one server and those of the last two minutes", n)
	}
	if got := r.Status().Services[0].Traffic.Conns; got != 200 {
		r.Errorf("the service counts %d connections, want 200", got)
	}
}
