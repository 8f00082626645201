package tun_test

import (
	"io"
	"testing"
	"time"

	"github.com/lvsd/lvsd/tun"
	"github.com/lvsd/lvsd/tun/nstest"
)

// BenchmarkEcho is the least that a frame costs: it is read from the kernel and written back, by one thread. The kernel
// gets a packet for which it has no route and drops it. What it costs to bring the frames into the device is not
// counted; ns/frame is the number to look at.
func BenchmarkEcho(b *testing.B) {
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"100B", udp(7, 1, 100-28)},
		{"64KiB", describe(udp(7, 1, 65535-28), 1, 5, 28, 1400, 20, 6)},
	} {
		b.Run(c.name, func(b *testing.B) {
			const frames = 256
			ns := nstest.New(b)
			d := mustOpen(b, ns, tun.DeviceConfig{Offload: true})
			setUp(b, ns, true)
			socket := packetSocket(b, ns, d.Index(), 0)
			q := d.Queues()[0]
			var spent time.Duration
			reads := 0
			for b.Loop() {
				for range frames {
					if _, err := socket.Write(c.frame); err != nil {
						b.Fatal(err)
					}
				}
				start := time.Now()
				for left := frames; left > 0; reads++ {
					batch, err := q.Read()
					if err != nil {
						b.Fatal(err)
					}
					if err := q.Write(batch); err != nil {
						b.Fatal(err)
					}
					left -= len(batch)
				}
				spent += time.Since(start)
			}
			if got := q.Stats(); got.Refused.Total() != 0 || got.FramesIn != got.FramesOut {
				b.Fatalf("counted %+v", got)
			}
			total := float64(q.Stats().FramesIn)
			b.ReportMetric(float64(spent.Nanoseconds())/total, "ns/frame")
			b.ReportMetric(total/float64(reads), "frames/batch")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkMirror is one TCP stream through the device, of a kernel that talks to itself.
func BenchmarkMirror(b *testing.B) {
	for _, c := range []struct {
		name    string
		offload bool
	}{{"offload", true}, {"no offload", false}} {
		b.Run(c.name, func(b *testing.B) {
			ns, d, _ := openMirror(b, tun.DeviceConfig{Offload: c.offload})
			from, to := connect(b, ns, 0)
			const size = 4 << 20
			go func() { // answers every size bytes with one
				for {
					if _, err := io.CopyN(io.Discard, to, size); err != nil {
						return
					}
					if _, err := to.Write([]byte{1}); err != nil {
						return
					}
				}
			}()
			data := make([]byte, size)
			b.SetBytes(size)
			for b.Loop() {
				if _, err := from.Write(data); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(from, data[:1]); err != nil {
					b.Fatal(err)
				}
			}
			got := d.Queues()[0].Stats()
			b.ReportMetric(float64(got.BytesIn)/float64(got.FramesIn), "B/frame")
		})
	}
}
