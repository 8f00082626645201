package balancer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// tcpFrame is a minimal TCP segment in a frame, checksums as a kernel with offload leaves them.
func tcpFrame(src, dst netip.AddrPort, flags uint8) []byte {
	ip := 20
	if src.Addr().Is6() {
		ip = 40
	}
	frame := make([]byte, stack.OffloadLen+ip+20, stack.MinFrameCap)
	stack.Offload(frame).Encode(stack.OffloadNeedsChecksum, 0, 0, 0, uint16(ip), 16)
	p := frame[stack.OffloadLen:]
	if ip == 20 {
		p[0], p[8], p[9] = 0x45, 64, 6
		binary.BigEndian.PutUint16(p[2:], 40)
	} else {
		p[0], p[6], p[7] = 0x60, 6, 64
		binary.BigEndian.PutUint16(p[4:], 20)
	}
	copy(p[ip-2*src.Addr().BitLen()/8:], src.Addr().AsSlice())
	copy(p[ip-dst.Addr().BitLen()/8:], dst.Addr().AsSlice())
	t := p[ip:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	t[12], t[13] = 5<<4, flags
	return frame
}

func benchDirector(b *testing.B, vip string, servers int) (*Director, netip.AddrPort) {
	d, err := New(Options{MaxConnections: 5 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	spec := DefaultSpec()
	svc := ServiceSpec{Protocol: TCP, Address: netip.MustParseAddrPort(vip), Scheduler: "rr"}
	for i := range servers {
		rip := netip.AddrFrom4([4]byte{10, 0, 2, byte(i)})
		if svc.Address.Addr().Is6() {
			rip = netip.AddrFrom16([16]byte{0xfd, 2, 15: byte(i)})
		}
		svc.Servers = append(svc.Servers, ServerSpec{Address: netip.AddrPortFrom(rip, 8080), Weight: 1})
	}
	spec.Services = []ServiceSpec{svc}
	if _, err := d.Apply(spec, 0); err != nil {
		b.Fatal(err)
	}
	return d, svc.Address
}

func clientAddr(i int, v6 bool) netip.AddrPort {
	port := uint16(1024 + i%50000)
	n := uint32(i / 50000)
	if v6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 1, 12: byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n) + 1}), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(n >> 8), byte(n) + 1}), port)
}

// BenchmarkForward is the cost of our own code for a packet of a known connection: decode, look up, advance, rewrite.
func BenchmarkForward(b *testing.B) {
	for _, vip := range []string{"10.0.0.1:80", "[fd00::1]:80"} {
		for _, conns := range []int{1000, 1000000} {
			for _, dir := range []string{"request", "reply"} {
				family := map[bool]string{true: "v6", false: "v4"}[vip[0] == '[']
				b.Run(fmt.Sprintf("%s/%s/%d", family, dir, conns), func(b *testing.B) {
					benchForward(b, vip, conns, dir == "reply")
				})
			}
		}
	}
}

func benchForward(b *testing.B, vip string, conns int, replies bool) {
	d, addr := benchDirector(b, vip, 3)
	w := d.NewWorker()
	defer w.Close()
	v6 := addr.Addr().Is6()
	requests := make([][]byte, 0, conns)
	templates := make([][]byte, 0, conns)
	for i := range conns {
		client := clientAddr(i, v6)
		out := w.Forward([][]byte{tcpFrame(client, addr, stack.FlagSYN)}, time.Second)
		if len(out) != 1 {
			b.Fatal("a connection was refused")
		}
		var p stack.Packet
		p.Decode(out[0])
		back := p.Flow.Reverse()
		f := tcpFrame(client, addr, stack.FlagACK)
		if replies {
			f = tcpFrame(netip.AddrPortFrom(back.Src.Netip(), back.SrcPort), client, stack.FlagACK)
		}
		templates = append(templates, f)
		requests = append(requests, append(make([]byte, 0, len(f)), f...))
	}
	// Requests are met in a random order, in batches of 32 as from a device; frames are restored outside of what is
	// timed by copying them in as the device would.
	const batchLen = 32
	batch := make([][]byte, batchLen)
	buffers := make([][]byte, batchLen)
	for i := range buffers {
		buffers[i] = make([]byte, 0, stack.MinFrameCap)
	}
	b.ReportAllocs()
	next := uint32(1)
	for n := 0; n < b.N; n += batchLen {
		for i := range batch {
			next = next*1664525 + 1013904223
			batch[i] = append(buffers[i][:0], templates[int(next>>4)%conns]...)
		}
		if out := w.Forward(batch, 2*time.Second); len(out) != batchLen {
			b.Fatalf("%d of %d frames came out", len(out), batchLen)
		}
	}
	_ = requests
}

// BenchmarkConnect is the cost of a new connection.
func BenchmarkConnect(b *testing.B) {
	d, addr := benchDirector(b, "10.0.0.1:80", 3)
	w := d.NewWorker()
	defer w.Close()
	frames := make([][]byte, 1)
	b.ReportAllocs()
	for n := range b.N {
		frames[0] = tcpFrame(clientAddr(n%5000000, false), addr, stack.FlagSYN)
		if out := w.Forward(frames, time.Second); len(out) != 1 {
			b.Fatal("refused")
		}
	}
}

// BenchmarkGC is a full garbage collection beside a million connections.
func BenchmarkGC(b *testing.B) {
	d, addr := benchDirector(b, "10.0.0.1:80", 3)
	w := d.NewWorker()
	defer w.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const conns = 1000000
	for i := range conns {
		w.Forward([][]byte{tcpFrame(clientAddr(i, false), addr, stack.FlagSYN)}, time.Second)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n, _ := d.ConnCount(); n != conns {
		b.Fatalf("%d connections", n)
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/conns+64, "B/conn")
	b.ResetTimer()
	for range b.N {
		runtime.GC()
	}
}
