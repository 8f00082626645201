package balancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lvsd/lvsd/balancer/sched"
	"github.com/lvsd/lvsd/stack"
)

// picks opens connections of new clients and tells which servers get them, in the order of ports from the first one on.
func (r *rig) picks(n int, firstPort int) string {
	r.Helper()
	what := map[Protocol]string{TCP: "SYN", UDP: "UDP"}[r.service.Protocol]
	var names []string
	for i := range n {
		result := r.send(fmt.Sprintf("%s -> vip %s", netip.AddrPortFrom(r.end("c3").Addr(), uint16(firstPort+i)), what))
		words := strings.Fields(result)
		if len(words) != 4 {
			names = append(names, result)
			continue
		}
		names = append(names, words[2])
	}
	return strings.Join(names, " ")
}

func (r *rig) wantPicks(firstPort int, want string) {
	r.Helper()
	if got := r.picks(len(strings.Fields(want)), firstPort); got != want {
		r.Errorf("picked %s, want %s", got, want)
	}
}

// TestServersAreScheduledNewestFirst is ipvs.md 1.2: the order is that of addition, and of the list in one Apply.
func TestServersAreScheduledNewestFirst(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.edit(func(svc *ServiceSpec) { svc.Servers = nil })
		r.edit(func(svc *ServiceSpec) {
			svc.Servers = []ServerSpec{r.serverSpec("rs1"), r.serverSpec("rs2"), r.serverSpec("rs3")}
		})
		r.wantPicks(2000, "rs3 rs2 rs1 rs3 rs2 rs1")
		shown := r.Status().Services[0].Servers
		if len(shown) != 3 || shown[0].Address != r.end("rs1") || shown[2].Address != r.end("rs3") {
			r.Errorf("Status shows the servers as %v", shown)
		}
	})
	t.Run("of a new service", func(t *testing.T) {
		r := newRig(t, "tcp4")
		r.apply(func(s *Spec) { s.Services = nil })
		r.apply(func(s *Spec) {
			r.service.Servers = []ServerSpec{r.serverSpec("rs1"), r.serverSpec("rs2"), r.serverSpec("rs3")}
			s.Services = []ServiceSpec{r.service}
		})
		r.wantPicks(2000, "rs3 rs2 rs1")
	})
	t.Run("one after the other", func(t *testing.T) {
		r := newRig(t, "tcp4")
		r.script(`
			set rs2
			set rs3
		`)
		r.wantPicks(2000, "rs3 rs2 rs1")
	})
}

// TestServersOfOneApplyAreAddedOneByOne: wrr's phase shows it; this is the kernel's sequence of ipvs.md 2.2.
func TestServersOfOneApplyAreAddedOneByOne(t *testing.T) {
	r := newRig(t, "tcp4")
	r.edit(func(svc *ServiceSpec) { svc.Scheduler, svc.Servers = "wrr", nil })
	r.edit(func(svc *ServiceSpec) {
		svc.Servers = []ServerSpec{r.serverSpec("rs1:4"), r.serverSpec("rs2:3"), r.serverSpec("rs3:2")}
	})
	r.wantPicks(2000, "rs3 rs2 rs1 rs1 rs2 rs1 rs3 rs2 rs1 rs3 rs2 rs1 rs1 rs2")
}

// TestWeightEditsReachTheScheduler is the kernel's sequence after an edit, of ipvs.md 2.2.
func TestWeightEditsReachTheScheduler(t *testing.T) {
	r := newRig(t, "tcp4")
	r.edit(func(svc *ServiceSpec) { svc.Scheduler, svc.Servers = "wrr", nil })
	r.edit(func(svc *ServiceSpec) {
		svc.Servers = []ServerSpec{r.serverSpec("rs1:4"), r.serverSpec("rs2:3"), r.serverSpec("rs3:2")}
	})
	r.wantPicks(2000, "rs3 rs2 rs1 rs1")
	r.script(`set rs3:8`)
	r.wantPicks(2100, "rs3 rs1 rs3 rs2 rs1 rs3 rs2 rs1 rs3 rs2 rs1 rs3")
}

// TestSpecTellsTheOrderThatIsInForce: a spec with the same servers in another order changes nothing, so what Spec tells
// afterwards, which is what will be saved, is the order in which they are scheduled.
func TestSpecTellsTheOrderThatIsInForce(t *testing.T) {
	r := newRig(t, "tcp4")
	r.setServers("rs3", "rs2", "rs1") // added as rs1, rs2, rs3
	r.edit(func(svc *ServiceSpec) { slices.Reverse(svc.Servers) })
	r.wantPicks(2000, "rs3 rs2 rs1")
	shown, told := r.Status().Services[0].Servers, r.Spec().Services[0].Servers
	for i := range told {
		if told[i].Address != shown[i].Address {
			r.Fatalf("Spec tells %v, Status shows %v", told, shown)
		}
	}
}

// TestEditsKeepThePhase: what is changed beside it does not make a scheduler start anew (ipvs.md 2.1, 2.2).
func TestEditsKeepThePhase(t *testing.T) {
	r := newRig(t, "tcp4")
	r.setServers("rs1", "rs2", "rs3")
	r.wantPicks(2000, "rs1")
	r.apply(func(s *Spec) { s.Timeouts.UDP *= 2 })
	r.wantPicks(2100, "rs2")
	r.apply(func(s *Spec) { s.Services = append(s.Services, ServiceSpec{Protocol: UDP, Address: r.end("vip2")}) })
	r.wantPicks(2200, "rs3")
	r.script(`set rs2:7`)
	r.wantPicks(2300, "rs1 rs2")
	r.script(`remove rs1`)
	r.wantPicks(2400, "rs3 rs2")
}

// TestOtherChangesKeepThePhase gives each scheduler the same clients twice, the second time with changes in between that
// are none of its business.
func TestOtherChangesKeepThePhase(t *testing.T) {
	for _, scheduler := range sched.Names() {
		t.Run(scheduler, func(t *testing.T) {
			const picks = 30
			var got [2]string
			for i := range got {
				r := newRig(t, "tcp4")
				r.edit(func(svc *ServiceSpec) { svc.Scheduler = scheduler })
				r.setServers("rs1:2", "rs2:3", "rs3:4")
				for j := range picks {
					got[i] += r.picks(1, 2000+j) + " "
					if i == 1 {
						r.apply(func(s *Spec) { s.Timeouts.UDP = time.Duration(1+j) * time.Second })
						r.apply(func(s *Spec) {
							other := ServiceSpec{Protocol: UDP, Address: r.end("vip2"), Scheduler: sched.Names()[j%2]}
							s.Services = append(s.Services[:1:1], other)
						})
					}
				}
			}
			if got[0] != got[1] {
				t.Errorf("undisturbed the picks are %s\nwith other changes %s", got[0], got[1])
			}
		})
	}
}

// TestSchedulerIsChanged: the new one starts with the servers that there are, connections go on.
func TestSchedulerIsChanged(t *testing.T) {
	r := newRig(t, "tcp4")
	r.setServers("rs1", "rs2", "rs3")
	r.script(`
		c1 -> vip SYN   => c1 -> rs1 SYN
		c2 -> vip SYN   => c2 -> rs2 SYN
	`)
	r.edit(func(svc *ServiceSpec) { svc.Scheduler = "lc" })
	r.wantPicks(2000, "rs3 rs1 rs2 rs3")
	r.edit(func(svc *ServiceSpec) { svc.Scheduler = "rr" })
	r.wantPicks(2100, "rs1 rs2 rs3 rs1")
	r.script(`
		c1 -> vip ACK   => c1 -> rs1 ACK
		c2 -> vip ACK   => c2 -> rs2 ACK
	`)
	if got := r.Status().Services[0].Scheduler; got != "rr" {
		r.Errorf("Status says %s", got)
	}
}

// TestServiceIsRemoved: its connections end like those of a removed server, and its VIP is nobody's.
func TestServiceIsRemoved(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(scriptsTo["ESTABLISHED"])
		r.apply(func(s *Spec) { s.Services = nil })
		r.script(`
			conn c1 -> vip none
			c1 -> vip ACK   => c1 -> vip ACK        # nothing says that the VIP is routed here
		`)
		vip := r.end("vip").Addr()
		r.SetEnvironment(Environment{Owned: []netip.Prefix{netip.PrefixFrom(vip, vip.BitLen())}})
		r.script(`
			c1 -> vip ACK   => vip -> c1 RST
			c1 -> vip SYN   => vip -> c1 RST+ACK
			c1 -> vip PING  => vip -> c1 PONG
		`)
	}, "tcp4", "tcp6")
}

// TestVIPOfManyServices stays ours until the last of its services is gone.
func TestVIPOfManyServices(t *testing.T) {
	r := newRig(t, "tcp4")
	other := ServiceSpec{Protocol: UDP, Address: r.end("closed"), Scheduler: "rr"}
	r.apply(func(s *Spec) { s.Services = append(s.Services, other) })
	r.apply(func(s *Spec) { s.Services = []ServiceSpec{other} })
	r.script(`c1 -> vip SYN => vip -> c1 RST+ACK`)
	r.apply(func(s *Spec) { s.Services = nil })
	r.script(`c1 -> vip SYN => c1 -> vip SYN`)
}

// TestOneApplyIsNeverSeenHalfDone does the changes of an Apply one by one, as they are done while packets come, and asks
// after each whether a new client would be refused. There is a server that takes connections before and after.
func TestOneApplyIsNeverSeenHalfDone(t *testing.T) {
	for name, to := range map[string][]string{
		"the server is replaced":       {"rs2"},
		"all servers are replaced":     {"rs2", "rs3"},
		"the weight moves to another":  {"rs1:0", "rs2:1"},
		"the server is drained for it": {"rs2:1", "rs1:0"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp4")
			if strings.Contains(name, "weight moves") {
				r.setServers("rs1:1", "rs2:0")
			}
			spec := r.spec.withDefaults()
			spec.Services[0].Servers = nil
			for _, name := range to {
				spec.Services[0].Servers = append(spec.Services[0].Servers, r.serverSpec(name))
			}
			snapshot := r.snapshot.Load()
			a := &application{director: r.Director, snapshot: snapshot.clone(), services: snapshot.services, edits: make(map[*service][]func())}
			a.snapshot.servers = slices.Clone(snapshot.servers)
			for _, c := range plan(&r.Director.spec, &spec) {
				a.prepare(&c)
			}
			svc := snapshot.services[r.service.key()]
			for changed, edits := range a.edits {
				changed.change(edits)
				if svc.schedule(r.flow(stack.ProtocolTCP, "c1", "vip")) == nil {
					r.Error("a new client is refused between two changes")
				}
			}
		})
	}
}

// manyServices are n services with two servers each.
func manyServices(n int) Spec {
	spec := DefaultSpec()
	for i := range n {
		rip := netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})
		spec.Services = append(spec.Services, ServiceSpec{
			Protocol: TCP, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80), Scheduler: "rr",
			Servers: []ServerSpec{{netip.AddrPortFrom(rip, 80), 1}, {netip.AddrPortFrom(rip, 81), 1}},
		})
	}
	return spec
}

func TestManyServices(t *testing.T) {
	const n = 10_000
	r := newRig(t, "tcp4")
	spec := manyServices(n + 1)
	spec.Services = spec.Services[1:] // 10.0.0.0 is fine, but not for a reader
	changes, err := r.Apply(spec, r.now)
	if err != nil || len(changes) != 3*n { // the rig's own service is the first of them, with other servers
		r.Fatalf("%d changes, %v", len(changes), err)
	}
	if got := len(r.Status().Services); got != n {
		r.Errorf("%d services run", got)
	}
	spec = spec.withDefaults()
	spec.Services[n/2].Servers[1].Weight = 0
	changes, err = r.Apply(spec, r.now)
	if err != nil || len(changes) != 1 || changes[0].Kind != EditServer {
		r.Errorf("one difference makes %d changes: %v, %v", len(changes), changes, err)
	}
	vip := spec.Services[n/2].Address.String()
	r.script(`c1 -> ` + vip + ` SYN => c1 -> ` + spec.Services[n/2].Servers[0].Address.String() + ` SYN`)
	spec.Services = slices.Delete(spec.Services, n/2, n/2+1)
	changes, err = r.Apply(spec, r.now)
	if err != nil || len(changes) != 1 || changes[0].Kind != RemoveService {
		r.Errorf("one service less makes %d changes: %v, %v", len(changes), changes, err)
	}
	if n, _ := r.ConnCount(); n != 0 {
		r.Errorf("%d connections of it are left", n)
	}
	r.checkInvariants()
}
