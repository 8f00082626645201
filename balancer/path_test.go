package balancer

import (
	"net/netip"
	"testing"
)

func (r *rig) path(server string, p Path) {
	r.Helper()
	r.SetEnvironment(Environment{Paths: map[netip.Addr]Path{r.end(server).Addr(): p}})
}

// TestPathMTU is ipvs.md 5.10: a packet that must not be fragmented and does not fit the way to its server is refused in
// the VIP's name, with the MTU of that way and the packet as the client knows it.
func TestPathMTU(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.path("rs1", Path{MTU: 1300})
		r.about(r.connected(), `
			c1 -> vip WHAT df len=1300      => c1 -> rs1 WHAT len=1300
			c1 -> vip WHAT df len=1301      => vip -> c1 too-big=1300 {c1 -> vip WHAT} ttl=65
			rs1 -> c1 WHAT df len=1500      => vip -> c1 WHAT len=1500      # the way back is not ours to judge
			c1 -> other WHAT df len=1500    => c1 -> other WHAT len=1500    # nor is any other
		`)
		if got := r.Status(); got.Answers["packet_too_big"] != 1 || len(got.Drops) != 0 {
			r.Errorf("answers %v, drops %v", got.Answers, got.Drops)
		}
	})
}

// TestPathMTUWithoutDF: a router may fragment it, so it passes.
func TestPathMTUWithoutDF(t *testing.T) {
	for _, network := range []string{"tcp4", "udp4"} {
		r := newRig(t, network)
		r.path("rs1", Path{MTU: 1300})
		r.about(r.connected(), `
			c1 -> vip WHAT len=1500     => c1 -> rs1 WHAT len=1500
			c1 -> vip WHAT len=30000 gso=1460   => c1 -> rs1 WHAT len=30000 gso=1460
		`)
	}
}

// TestPathMTUOfSuperPackets: they are judged by the packets that they will be, not by their own length.
func TestPathMTUOfSuperPackets(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.path("rs1", Path{MTU: 1300})
		headers := map[Protocol]int{TCP: 20, UDP: 8}[r.service.Protocol] + r.book.parse(r, "c1 -> vip UDP").ipLen()
		fits, not := itoa(1300-headers), itoa(1301-headers)
		r.about(r.connected(), `
			c1 -> vip WHAT df len=30000 gso=`+fits+`    => c1 -> rs1 WHAT len=30000 gso=`+fits+`
			c1 -> vip WHAT df len=30000 gso=`+not+`     => vip -> c1 too-big=1300 {c1 -> vip WHAT}
			c1 -> vip WHAT df len=1300 gso=`+not+`      => c1 -> rs1 WHAT len=1300
		`)
	})
}

// TestPathMTUOfErrors: ICMP errors on their way are exempt.
func TestPathMTUOfErrors(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.path("rs1", Path{MTU: 300})
		r.about(r.connected(), `
			router -> vip unreachable-host {vip -> c1 WHAT len=400} df => router -> rs1 unreachable-host {rs1 -> c1 WHAT}
		`)
	})
}

func TestPathUnreachable(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		r.path("rs1", Path{Unreachable: true})
		r.about(what, `
			c1 -> vip WHAT      => vip -> c1 unreachable-host {c1 -> vip WHAT} ttl=65
			rs1 -> c1 WHAT      => vip -> c1 WHAT
		`)
		status := r.server("rs1")
		if !status.Unreachable || r.Status().Answers["host_unreachable"] != 1 {
			r.Errorf("status %+v, answers %v", status, r.Status().Answers)
		}
		r.SetEnvironment(Environment{})
		r.about(what, `c1 -> vip WHAT => c1 -> rs1 WHAT`)
	})
}

// TestNoTTL is ipvs.md 5.2: the TTL is looked at when the connection has been made and counted.
func TestNoTTL(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := map[Protocol]string{TCP: "SYN", UDP: "UDP"}[r.service.Protocol]
		r.about(what, `
			c1 -> vip WHAT ttl=0    => vip -> c1 time-exceeded {c1 -> vip WHAT} ttl=65
			c1 -> vip WHAT ttl=1    => c1 -> rs1 WHAT ttl=2
		`)
		if got := r.Status(); got.Total.Conns != 1 || got.Total.InPackets != 2 || got.Answers["time_exceeded"] != 1 {
			r.Errorf("total %+v, answers %v", got.Total, got.Answers)
		}
	})
}

// TestPathsOfServersThatComeLater: what the director was told holds for servers that are added afterwards and for those
// that come back.
func TestPathsOfServersThatComeLater(t *testing.T) {
	r := newRig(t, "tcp4")
	r.path("rs2", Path{MTU: 1300})
	r.script(`
		remove rs1
		set rs2
		c1 -> vip SYN                   => c1 -> rs2 SYN
		c1 -> vip ACK df len=1400       => vip -> c1 too-big=1300 {c1 -> vip ACK}
		tune expire_nodest_conn 0
		remove rs2
	`)
	r.path("rs2", Path{MTU: 1400})
	r.script(`
		set rs2
		c1 -> vip ACK df len=1400       => c1 -> rs2 ACK
	`)
	if got := r.server("rs2").MTU; got != 1400 {
		r.Errorf("the server is shown with MTU %d", got)
	}
}
