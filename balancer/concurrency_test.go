package balancer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// traffic is a goroutine that opens and ends connections through a worker of its own until it is told to stop. judge
// sees the server of each, or the zero AddrPort of one that was refused.
func (r *rig) traffic(wg *sync.WaitGroup, stop *atomic.Bool, id int, judge func(server netip.AddrPort)) {
	w := r.NewWorker()
	segments := make([][]byte, 3)
	for i, what := range []string{"SYN", "ACK", "RST"} { // after which the client's next SYN is scheduled anew
		segments[i] = r.book.frame(r, fmt.Sprintf("172.20.0.%d:9 -> vip %s", id, what))
	}
	wg.Go(func() {
		defer w.Close()
		var p stack.Packet
		frames := make([][]byte, 3)
		for client := uint16(1); !stop.Load(); client = client%4096 + 1 {
			for i := range frames {
				frames[i] = append(make([]byte, 0, stack.MinFrameCap), segments[i]...)
				binary.BigEndian.PutUint16(frames[i][stack.OffloadLen+20:], 1024+client)
			}
			server := netip.AddrPort{}
			for _, frame := range w.Forward(frames[:1], r.now) {
				if p.Decode(frame) == stack.NoProblem && p.Kind == stack.KindTCP && p.TCPFlags == stack.FlagSYN {
					server = netip.AddrPortFrom(p.Flow.Dst.Netip(), p.Flow.DstPort)
				}
			}
			judge(server)
			w.Forward(frames[1:], r.now)
		}
	})
}

// TestServersAreReplacedUnderTraffic: while servers come and go a client is never refused, as long as there is one, and
// a server that is gone gets no new connection once Apply has returned.
func TestServersAreReplacedUnderTraffic(t *testing.T) {
	r := newRigWith(t, "tcp4", Options{MaxConnections: 1 << 20})
	rip := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 9, byte(i)}), 80)
	}
	r.edit(func(svc *ServiceSpec) { svc.Servers = []ServerSpec{{rip(0), 1}, {rip(1), 1}} })
	var stop atomic.Bool
	var wg sync.WaitGroup
	var refused, picked atomic.Int64
	for id := range 2 {
		r.traffic(&wg, &stop, id, func(server netip.AddrPort) {
			if !server.IsValid() {
				refused.Add(1)
			}
			picked.Add(1)
		})
	}
	wg.Go(func() {
		for !stop.Load() {
			r.Expire(r.now)
			r.Status()
			r.Connections(r.now, func(Conn) bool { return true })
		}
	})
	spec := r.Spec()
	for i := range 100 {
		spec = spec.withDefaults()
		spec.Services[0].Servers = []ServerSpec{{rip(i%200 + 1), 1}, {rip(i%200 + 2), 1}} // one stays, one goes, one comes
		if _, err := r.Apply(spec, r.now); err != nil {
			r.Fatal(err)
		}
		removed := r.removedServer(rip(i % 200))
		if removed == nil {
			continue
		}
		conns := r.connsOf(removed)
		target := picked.Load() + 20
		deadline := time.Now().Add(10 * time.Second)
		for picked.Load() < target && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if after := r.connsOf(removed); after != conns {
			r.Fatalf("round %d: the removed server got %d connections after Apply returned", i, after-conns)
		}
	}
	stop.Store(true)
	wg.Wait()
	if refused.Load() > 0 || picked.Load() == 0 {
		r.Errorf("%d of %d clients were refused", refused.Load(), picked.Load())
	}
	r.checkInvariants()
	if got := r.Status(); int64(got.Total.Conns) != picked.Load() { // removed and forgotten ones included
		r.Errorf("%d connections are counted, %d were made", got.Total.Conns, picked.Load())
	}
}

// removedServer is the server with an address if it is removed and remembered.
func (r *rig) removedServer(a netip.AddrPort) *server {
	r.Director.mu.Lock()
	defer r.Director.mu.Unlock()
	return r.Director.removed[removedKey{r.service.key(), stack.AddrFrom(a.Addr()), a.Port()}]
}

// connsOf is how many connections a server was given, ever.
func (r *rig) connsOf(srv *server) uint64 {
	r.Director.mu.Lock()
	defer r.Director.mu.Unlock()
	return r.Director.count().traffic[srv.number].Conns
}

// TestTheOnlyServerIsReplacedUnderTraffic: there is no moment without a server, as there is none in either spec.
func TestTheOnlyServerIsReplacedUnderTraffic(t *testing.T) {
	r := newRigWith(t, "tcp4", Options{MaxConnections: 1 << 20})
	var stop atomic.Bool
	var wg sync.WaitGroup
	var refused, picked atomic.Int64
	r.traffic(&wg, &stop, 0, func(server netip.AddrPort) {
		if !server.IsValid() {
			refused.Add(1)
		}
		picked.Add(1)
	})
	spec := r.Spec()
	for i := range 400 {
		spec = spec.withDefaults()
		spec.Services[0].Servers = []ServerSpec{r.serverSpec([]string{"rs1", "rs2"}[i%2])}
		if _, err := r.Apply(spec, r.now); err != nil {
			r.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if refused.Load() > 0 {
		r.Errorf("%d of %d clients were refused", refused.Load(), picked.Load())
	}
	r.checkInvariants()
}

// TestWorkersShareConnections has two workers take the same packets at the same time: each client has one connection
// with one server, whoever made it.
func TestWorkersShareConnections(t *testing.T) {
	r := newRigWith(t, "tcp4", Options{MaxConnections: 1 << 16})
	r.setServers("rs1", "rs2", "rs3")
	const clients, workers = 5000, 3
	var servers [workers][clients]netip.AddrPort
	var wg sync.WaitGroup
	for id := range workers {
		w := r.NewWorker()
		wg.Go(func() {
			defer w.Close()
			var p stack.Packet
			for i := range clients {
				frame := rawFrame(stack.ProtocolTCP, clientAddr(i, false), r.service.Address, stack.FlagSYN)
				out := w.Forward([][]byte{frame}, r.now)
				if len(out) == 1 && p.Decode(out[0]) == stack.NoProblem {
					servers[id][i] = netip.AddrPortFrom(p.Flow.Dst.Netip(), p.Flow.DstPort)
				}
			}
		})
	}
	wg.Wait()
	for i := range clients {
		for id := range workers {
			if servers[id][i] != servers[0][i] || !servers[id][i].IsValid() {
				r.Fatalf("client %d: one worker says %v, another %v", i, servers[0][i], servers[id][i])
			}
		}
	}
	got := r.Status()
	if got.Connections != clients || got.Total.Conns != clients || got.Total.InPackets != workers*clients {
		r.Errorf("%d connections, total %+v", got.Connections, got.Total)
	}
	r.checkInvariants()
}

// TestTheFirstOfTwoWorkersConnects is the moment that the test above may miss: both have found no connection and picked
// a server, another each.
func TestTheFirstOfTwoWorkersConnects(t *testing.T) {
	r := newRig(t, "tcp4")
	r.setServers("rs1", "rs2")
	second := r.NewWorker()
	defer second.Close()
	second.Forward(nil, r.now)
	r.script(`c1 -> vip SYN => c1 -> rs1 SYN`)
	var p stack.Packet
	if problem := p.Decode(r.book.frame(r, "c1 -> vip SYN")); problem != stack.NoProblem {
		t.Fatal(problem)
	}
	var f fate
	second.connect(&p, second.snapshot.servers[r.numberOf("rs2")], &f)
	if f.action != actToServer || f.addr != stack.AddrFrom(r.end("rs1").Addr()) || f.server.number != r.numberOf("rs1") {
		t.Errorf("the second packet goes to %s", f.addr)
	}
	if n, _ := r.ConnCount(); n != 1 || r.Status().Total.Conns != 1 {
		t.Errorf("there are %d connections, counted %d", n, r.Status().Total.Conns)
	}
	r.checkInvariants()
}

// TestRecordYoungerThanTheSnapshot: a worker in the middle of a batch meets a connection with a server that was added
// after the batch began, under a new number and under one that was free.
func TestRecordYoungerThanTheSnapshot(t *testing.T) {
	for name, reused := range map[string]bool{"new number": false, "number used again": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp4")
			if reused {
				r.script(`
					set rs3
					remove rs3
					expire
					wait 2m
					expire
				`)
			}
			late := r.NewWorker()
			defer late.Close()
			late.Forward(nil, r.now)
			r.script(`
				set rs2
				c1 -> vip SYN   => c1 -> rs2 SYN
			`)
			var p stack.Packet
			for text, action := range map[string]action{"c1 -> vip ACK": actToServer, "rs2 -> c1 ACK": actToClient} {
				before := r.server("rs2").Traffic
				old := late.snapshot
				if problem := p.Decode(r.book.frame(r, text)); problem != stack.NoProblem {
					t.Fatal(problem)
				}
				var f fate
				late.decide(&p, &f)
				late.carryOut(&p, &f)
				if f.action != action || f.server.number != r.numberOf("rs2") || r.server("rs2").Traffic == before {
					t.Errorf("%s: action %d, server %v", text, f.action, f.server.spec.Address)
				}
				late.snapshot = old
			}
		})
	}
}

// queue is a Queue of frames given in advance, which fails when they are used up.
type queue struct {
	in   [][][]byte
	fail error
	out  [][]byte
}

func (q *queue) Read() ([][]byte, error) {
	if len(q.in) == 0 {
		return nil, q.fail
	}
	frames := q.in[0]
	q.in = q.in[1:]
	return frames, nil
}

func (q *queue) Write(frames [][]byte) error {
	if len(q.out) > 2 {
		return q.fail
	}
	for _, frame := range frames {
		q.out = append(q.out, append([]byte(nil), frame...))
	}
	return nil
}

// TestServe takes what a queue reads to where it writes, by the clock, until the queue fails.
func TestServe(t *testing.T) {
	r := newRig(t, "tcp4")
	q := &queue{fail: fmt.Errorf("the device is gone"), in: [][][]byte{
		{r.book.frame(r, "c1 -> vip SYN"), r.book.frame(r, "c2 -> vip ACK")},
		{r.book.frame(r, "rs1 -> c1 SYN+ACK")},
	}}
	now := r.now
	err := r.Serve(q, func() time.Duration { now += time.Second; return now })
	if err != q.fail || len(q.out) != 3 {
		r.Fatalf("Serve returned %v after %d frames", err, len(q.out))
	}
	for i, want := range []string{"c1 -> rs1 SYN", "vip -> c2 RST", "vip -> c1 SYN+ACK"} {
		if got := r.book.read(r, q.out[i]); got != want {
			r.Errorf("frame %d is %s, want %s", i, got, want)
		}
	}
	r.now = now
	r.script(`conn c1 -> vip SYN_RECV 1m0s`)
	if got := r.Status().Frames; got.In != 3 || got.Out != 3 || len(r.workers) != 1 {
		r.Errorf("%+v is left of the worker, %d workers", got, len(r.workers))
	}
	q.in = [][][]byte{{r.book.frame(r, "c1 -> vip ACK")}}
	if err := r.Serve(q, func() time.Duration { return now }); err != q.fail || len(q.in) != 0 {
		r.Errorf("a queue that cannot be written to ends with %v", err)
	}
}
