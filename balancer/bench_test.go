package balancer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// Benchmarks measure the time between a frame going into the director and coming out. Building frames, and filling
// buffers as a device does, is not counted: ns/packet is the figure, ns/op is of no use beside it.

const benchBatch = 64 // frames, as many as a device hands out at once

// benchDirector has one service with three servers.
func benchDirector(b *testing.B, v6 bool) (*Director, *Worker, netip.AddrPort) {
	b.Helper()
	d, err := New(Options{MaxConnections: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	w := d.NewWorker()
	b.Cleanup(func() {
		w.Close()
		d.Close()
	})
	book := ends(v6)
	spec := DefaultSpec()
	spec.Services = []ServiceSpec{{Protocol: TCP, Address: book.end(b, "vip"), Scheduler: "rr", Servers: []ServerSpec{
		{book.end(b, "rs1"), 1}, {book.end(b, "rs2"), 1}, {book.end(b, "rs3"), 1},
	}}}
	if _, err := d.Apply(spec, 0); err != nil {
		b.Fatal(err)
	}
	return d, w, spec.Services[0].Address
}

// establish opens connections by a SYN and an ACK and returns the server of each.
func establish(b *testing.B, w *Worker, vip netip.AddrPort, conns int, now time.Duration) []netip.AddrPort {
	b.Helper()
	servers := make([]netip.AddrPort, conns)
	var p stack.Packet
	for i := range servers {
		client := clientAddr(i, vip.Addr().Is6())
		out := w.Forward([][]byte{
			rawFrame(stack.ProtocolTCP, client, vip, stack.FlagSYN), rawFrame(stack.ProtocolTCP, client, vip, stack.FlagACK),
		}, now)
		if len(out) != 2 || p.Decode(out[0]) != stack.NoProblem {
			b.Fatalf("connection %d was refused", i)
		}
		servers[i] = netip.AddrPortFrom(p.Flow.Dst.Netip(), p.Flow.DstPort)
	}
	return servers
}

// BenchmarkForward is the cost of a packet of a known connection: decode, look up, advance, rewrite. With 1,000
// connections all is in the caches, with a million hardly any connection is.
func BenchmarkForward(b *testing.B) {
	for _, family := range []string{"v4", "v6"} {
		for _, dir := range []string{"request", "reply"} {
			for _, conns := range []int{1000, 1_000_000} {
				b.Run(fmt.Sprintf("%s/%s/%d", family, dir, conns), func(b *testing.B) {
					benchForward(b, family == "v6", dir == "reply", conns)
				})
			}
		}
	}
}

func benchForward(b *testing.B, v6, replies bool, conns int) {
	_, w, vip := benchDirector(b, v6)
	var frames [][]byte
	for i, server := range establish(b, w, vip, conns, time.Second) {
		client := clientAddr(i, v6)
		frame := rawFrame(stack.ProtocolTCP, client, vip, stack.FlagACK)
		if replies {
			frame = rawFrame(stack.ProtocolTCP, server, client, stack.FlagACK)
		}
		frames = append(frames, append([]byte(nil), frame...)) // without room for answers: a million of them
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
	batch, buffers := make([][]byte, benchBatch), make([][stack.MinFrameCap]byte, benchBatch)
	next, packets, spent := 0, 0, time.Duration(0)
	b.ReportAllocs()
	for b.Loop() {
		for i := range batch {
			batch[i] = append(buffers[i][:0], frames[next]...)
			if next++; next == len(frames) {
				next = 0
			}
		}
		start := time.Now()
		out := w.Forward(batch, 2*time.Second)
		spent += time.Since(start)
		packets += len(out)
	}
	if drops := w.director.Status().Drops; len(drops) != 0 {
		b.Fatalf("drops: %v", drops)
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(packets), "ns/packet")
}

// BenchmarkConnect is the cost of a packet that makes a connection.
func BenchmarkConnect(b *testing.B) {
	for _, family := range []string{"v4", "v6"} {
		b.Run(family, func(b *testing.B) {
			d, w, vip := benchDirector(b, family == "v6")
			const conns = 1_000_000 / benchBatch * benchBatch
			batch := make([][]byte, benchBatch)
			client, packets, spent, now := 0, 0, time.Duration(0), time.Second
			for b.Loop() {
				if client == conns {
					client, now = 0, now+time.Hour
					d.Expire(now)
				}
				for i := range batch {
					batch[i] = rawFrame(stack.ProtocolTCP, clientAddr(client, family == "v6"), vip, stack.FlagSYN)
					client++
				}
				start := time.Now()
				out := w.Forward(batch, now)
				spent += time.Since(start)
				packets += len(out)
			}
			if got := d.Status(); got.Total.Conns != uint64(packets) {
				b.Fatalf("%d packets made %d connections", packets, got.Total.Conns)
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(packets), "ns/packet")
		})
	}
}

// BenchmarkExpire is a look at a million connections, and the end of a million.
func BenchmarkExpire(b *testing.B) {
	const conns = 1_000_000
	b.Run("look", func(b *testing.B) {
		d, w, vip := benchDirector(b, false)
		establish(b, w, vip, conns, time.Second)
		for b.Loop() {
			d.Expire(2 * time.Second)
		}
		if n, _ := d.ConnCount(); n != conns {
			b.Fatalf("%d connections are left", n)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/conns, "ns/conn")
	})
	b.Run("end", func(b *testing.B) {
		d, w, vip := benchDirector(b, false)
		spent, now := time.Duration(0), time.Second
		for b.Loop() {
			establish(b, w, vip, conns, now)
			now += time.Hour
			start := time.Now()
			d.Expire(now)
			spent += time.Since(start)
		}
		if n, _ := d.ConnCount(); n != 0 {
			b.Fatalf("%d connections are left", n)
		}
		b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N)/conns, "ns/conn")
	})
}

// BenchmarkGC is a full garbage collection beside a million connections, and what they take: memory of the heap, and
// records of the slab.
func BenchmarkGC(b *testing.B) {
	for family, recordLen := range map[string]float64{"v4": 64, "v6": 128} {
		b.Run(family, func(b *testing.B) {
			_, w, vip := benchDirector(b, family == "v6")
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			const conns = 1_000_000
			establish(b, w, vip, conns, time.Second)
			runtime.GC()
			runtime.ReadMemStats(&after)
			for b.Loop() {
				runtime.GC()
			}
			b.ReportMetric(recordLen+float64(after.HeapAlloc-before.HeapAlloc)/conns, "B/conn")
		})
	}
}

// BenchmarkApply is one change among 10,000 services with 20,000 servers.
func BenchmarkApply(b *testing.B) {
	for name, change := range map[string]func(spec *Spec, i int){
		"nothing": func(*Spec, int) {},
		"weight":  func(spec *Spec, i int) { spec.Services[5000].Servers[0].Weight = 1 + i%2 },
		"server": func(spec *Spec, i int) {
			spec.Services[5000].Servers[1].Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 0, 1}), uint16(100+i%2))
		},
		"service": func(spec *Spec, i int) {
			spec.Services[5000].Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 9, 9}), uint16(100+i%2))
		},
	} {
		b.Run(name, func(b *testing.B) {
			d, _, _ := benchDirector(b, false)
			spec := manyServices(10_000)
			if _, err := d.Apply(spec, 0); err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				i++
				change(&spec, i)
				if _, err := d.Apply(spec, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
