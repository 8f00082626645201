package balancer

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// TestTrafficIsWhatWentThrough holds the counters of ipvs.md section 8 against a count of its own: whole IP packets, in
// to the server and out to the client, per server, service and in all.
func TestTrafficIsWhatWentThrough(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		what := map[Protocol]string{TCP: "SYN", UDP: "UDP"}[r.service.Protocol]
		var want [2]Traffic
		var frames FrameStatus
		send := func(text string, count func(bytes uint64)) {
			frame := r.book.frame(r, text)
			frames.In++
			frames.InBytes += uint64(len(frame))
			for _, out := range r.forward(frame) {
				frames.Out++
				frames.OutBytes += uint64(len(out))
			}
			count(uint64(len(frame) - stack.OffloadLen))
		}
		in := func(i int) func(uint64) {
			return func(bytes uint64) { want[i].InPackets++; want[i].InBytes += bytes }
		}
		out := func(i int) func(uint64) {
			return func(bytes uint64) { want[i].OutPackets++; want[i].OutBytes += bytes }
		}
		for i, client := range []string{"c1", "c2"} {
			server := []string{"rs1", "rs2"}[i]
			want[i].Conns++
			send(client+" -> vip "+what, in(i))
			send(server+" -> "+client+" "+what, out(i))
			if r.service.Protocol == TCP {
				send(client+" -> vip ACK len=61234 gso=1400", in(i)) // a super-packet counts as one
			}
			send("router -> "+client+" too-big=1300 {"+client+" -> "+server+" "+what+"}", out(i))
			send("router -> vip too-big=1300 {vip -> "+client+" "+what+"}", in(i))
		}
		r.path("rs1", Path{Unreachable: true}) // what is refused on the way has gone in
		send("c1 -> vip "+what, in(0))
		none := func(uint64) {}
		send("c1 -> vip PING", none)
		send("rs1 -> other UDP", func(uint64) { frames.Passed++ })
		send("c3 -> vip RST", none)
		frames.Average = frames.InBytes / frames.In

		got := r.Status()
		total := want[0]
		total.add(&want[1])
		for i, name := range []string{"rs1", "rs2"} {
			if srv := r.server(name); srv.Traffic != want[i] {
				r.Errorf("%s counts %+v, want %+v", name, srv.Traffic, want[i])
			}
		}
		if got.Services[0].Traffic != total || got.Total != total {
			r.Errorf("the service counts %+v, all count %+v, want %+v", got.Services[0].Traffic, got.Total, total)
		}
		if got.Frames != frames {
			r.Errorf("frames: %+v, want %+v", got.Frames, frames)
		}
	})
}

// TestServicesKeepWhatFormerServersCounted: removing a server takes nothing from its service.
func TestServicesKeepWhatFormerServersCounted(t *testing.T) {
	r := newRig(t, "udp4")
	r.script(`
		c1 -> vip UDP   => c1 -> rs1 UDP
		rs1 -> c1 UDP   => vip -> c1 UDP
	`)
	want := r.Status().Services[0].Traffic
	r.script(`
		set rs2
		remove rs1
	`)
	for range 5 {
		if got := r.Status(); got.Services[0].Traffic != want || got.Total != want || r.server("rs2").Traffic != (Traffic{}) {
			t.Fatalf("at %v the service counts %+v, want %+v", r.now, got.Services[0].Traffic, want)
		}
		r.script(`
			wait 1m
			expire
		`)
	}
	if len(r.removed) != 0 {
		t.Error("the server was not forgotten")
	}
}

// TestTotalOutlivesServices: what the director has counted in all never goes back (ipvs.md section 8 has it as an
// object of its own). Rates that are computed from it would be wrong otherwise.
func TestTotalOutlivesServices(t *testing.T) {
	r := newRig(t, "udp4")
	service := r.spec.Services
	r.script(`
		c1 -> vip UDP   => c1 -> rs1 UDP
		rs1 -> c1 UDP   => vip -> c1 UDP
	`)
	want := r.Status().Total
	for _, services := range [][]ServiceSpec{nil, service} {
		r.apply(func(s *Spec) { s.Services = services })
		if got := r.Status().Total; got != want {
			t.Errorf("with %d services the total is %+v, before %+v", len(services), got, want)
		}
	}
	r.apply(func(s *Spec) { s.Services = nil })
	r.script(`
		expire
		wait 3m
		expire
	`)
	if got := r.Status().Total; got != want {
		t.Errorf("when its servers are forgotten the total is %+v, before %+v", got, want)
	}
}

// TestClosedWorkersStillCount: what a worker has counted stays when it is closed, and moves with the others' share.
func TestClosedWorkersStillCount(t *testing.T) {
	r := newRig(t, "tcp4")
	w := r.NewWorker()
	for _, text := range []string{"c1 -> vip SYN", "c2 -> vip RST", "c2 -> vip PING"} {
		w.Forward([][]byte{r.book.frame(r, text)}, r.now)
	}
	r.script(`c1 -> vip ACK => c1 -> rs1 ACK`)
	check := func(when string) {
		t.Helper()
		got := r.Status()
		if got.Services[0].Traffic.InPackets != 2 || got.Frames.In != 4 ||
			got.Drops["stray_reset"] != 1 || got.Answers["echo_reply"] != 1 {
			t.Errorf("%s: %+v, drops %v, answers %v, frames %+v", when, got.Services[0].Traffic, got.Drops, got.Answers, got.Frames)
		}
	}
	check("running")
	w.Close()
	check("closed")
	r.script(`
		set rs2
		remove rs1
		expire
		wait 2m
		expire
	`)
	check("its server forgotten")
	r.script(`set rs3`) // has the number of rs1
	if got := r.server("rs3").Traffic; got != (Traffic{}) {
		t.Errorf("a new server counts %+v of a former one's", got)
	}
}

// TestNewWorkersKnowAllServers makes one when there are many already.
func TestNewWorkersKnowAllServers(t *testing.T) {
	r := newRig(t, "tcp4")
	if _, err := r.Apply(manyServices(300), r.now); err != nil {
		t.Fatal(err)
	}
	w := r.NewWorker()
	defer w.Close()
	out := w.Forward([][]byte{r.book.frame(r, "c1 -> 10.0.1.43:80 SYN")}, r.now)
	if len(out) != 1 || r.Status().Total.Conns != 1 {
		t.Errorf("%d frames came out", len(out))
	}
}

func TestReasonsHaveNames(t *testing.T) {
	seen := make(map[string]bool)
	for reason := range DropReason(numDropReasons) {
		name := reason.String()
		if name == "" || seen[name] || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("reason %d is called %q", reason, name)
		}
		seen[name] = true
	}
	for a := actEcho; a < numActions; a++ {
		if name := answerNames[a]; name == "" || seen[name] {
			t.Errorf("answer %d is called %q", a, name)
		}
		seen[answerNames[a]] = true
	}
}

// TestStatusOfNothing is what a program reads that starts before anything is configured: empty lists, not null.
func TestStatusOfNothing(t *testing.T) {
	d, err := New(Options{MaxConnections: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := json.Marshal(d.Status())
	if err != nil {
		t.Fatal(err)
	}
	const traffic = `{"conns":0,"in_packets":0,"in_bytes":0,"out_packets":0,"out_bytes":0}`
	const want = `{"services":[],"connections":0,"max_connections":7,"total":` + traffic +
		`,"frames":{"in":0,"in_bytes":0,"out":0,"out_bytes":0,"passed":0,"in_average":0},"drops":{},"answers":{}}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

func TestStatusOfServices(t *testing.T) {
	r := newRig(t, "tcp4")
	r.apply(func(s *Spec) {
		*s = specOf(t, `
			udp 10.0.0.9:53 lc
			tcp 10.0.0.9:53
			tcp 10.0.0.2:443 wrr
			  192.168.1.12:443 0
			  192.168.1.11:443 3
			tcp [2001:db8::1]:80 rr
		`)
	})
	var got []string
	for _, svc := range r.Status().Services {
		got = append(got, svc.Protocol.String()+" "+svc.Address.String()+" "+svc.Scheduler)
	}
	want := []string{"tcp 10.0.0.2:443 wrr", "tcp 10.0.0.9:53 wlc", "udp 10.0.0.9:53 lc", "tcp [2001:db8::1]:80 rr"}
	if !slices.Equal(got, want) {
		t.Errorf("the services are %q", got)
	}
	servers := r.Status().Services[0].Servers
	first := netip.MustParseAddrPort("192.168.1.12:443")
	if len(servers) != 2 || servers[0].Address != first || servers[0].Weight != 0 || servers[1].Weight != 3 {
		t.Errorf("the servers are %+v", servers)
	}
}

func TestConnections(t *testing.T) {
	r := newRig(t, "tcp4")
	six := ends(true)
	r.apply(func(s *Spec) {
		s.Services = append(s.Services,
			ServiceSpec{Protocol: UDP, Address: r.end("vip"), Servers: []ServerSpec{r.serverSpec("rs2")}},
			ServiceSpec{Protocol: TCP, Address: six.end(t, "vip"), Servers: []ServerSpec{{six.end(t, "rs1"), 1}}},
		)
	})
	r.script(`
		c1 -> vip SYN   => c1 -> rs1 SYN
		c1 -> vip ACK   => c1 -> rs1 ACK
		wait 1s
		c1 -> vip UDP   => c1 -> rs2 UDP
		c2 -> vip SYN   => c2 -> rs1 SYN
	`)
	if out := r.forward(six.frame(t, "c1 -> vip SYN")); len(out) != 1 {
		t.Fatal("no IPv6 connection")
	}
	r.now += time.Second
	want := map[Conn]bool{
		{TCP, r.end("c1"), r.end("vip"), r.end("rs1"), "ESTABLISHED", 15*time.Minute - 2*time.Second, 2}:        true,
		{UDP, r.end("c1"), r.end("vip"), r.end("rs2"), "UDP", 5*time.Minute - time.Second, 1}:                   true,
		{TCP, r.end("c2"), r.end("vip"), r.end("rs1"), "SYN_RECV", time.Minute - time.Second, 1}:                true,
		{TCP, six.end(t, "c1"), six.end(t, "vip"), six.end(t, "rs1"), "SYN_RECV", time.Minute - time.Second, 1}: true,
	}
	visits := 0
	r.Connections(r.now, func(c Conn) bool {
		visits++
		if !want[c] {
			t.Errorf("there is %+v", c)
		}
		return true
	})
	if visits != len(want) {
		t.Errorf("%d connections, want %d", visits, len(want))
	}
	for most := 1; most <= len(want); most++ {
		visits = 0
		r.Connections(r.now, func(Conn) bool { visits++; return visits < most })
		if visits != most {
			t.Errorf("%d visits, stopped at %d", visits, most)
		}
	}
	visits = 0
	r.Connections(r.now+time.Minute, func(c Conn) bool { // what is over is not shown, swept or not
		visits++
		r.Status() // no lock is held
		r.send("c1 -> vip ACK")
		return true
	})
	if visits != 2 {
		t.Errorf("a minute later there are %d connections, want 2", visits)
	}
}
