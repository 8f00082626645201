package tun_test

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun"
	"github.com/lvsd/lvsd/tun/nstest"
	"github.com/lvsd/lvsd/tun/tuntest"
)

// TestMemoryRefusesWhatTheKernelRefuses writes the same frames, with headers that fit their packets more or less, to a
// device of the kernel and to one in memory.
func TestMemoryRefusesWhatTheKernelRefuses(t *testing.T) {
	ns := nstest.New(t)
	d := mustOpen(t, ns, tun.DeviceConfig{Offload: true})
	if !d.Offloads().USO {
		nstest.Missing(t, "a kernel with UDP segmentation offload for tun devices (6.2)")
	}
	setUp(t, ns, true)
	memory := tuntest.NewDevice(1)
	defer memory.Close()
	kernel, model := d.Queues()[0], memory.Queues()[0]

	random := rand.New(rand.NewPCG(3, 4))
	pick := func(some ...int) int { return some[random.IntN(len(some))] }
	taken, refused := 0, 0
	for range 20000 {
		frame := udp(7, 1, pick(0, 4, 10, 12, 20, 100, 1000, 9000)+pick(0, 20))
		packet := frame[tun.HeaderLen:]
		if pick(4, 6) == 6 {
			clear(packet[:min(40, len(packet))])
			packet[0], packet[6] = 0x60, byte(pick(6, 17, 44, 58))
		} else {
			packet[9] = byte(pick(1, 6, 17))
		}
		frame = frame[:min(len(frame), pick(11, 20, 30, 38, 39, 48, 50, 60, 100, 10000, 10000, 10000))]
		describe(frame, uint8(pick(0, 1, 1, 1, 2, 3, 4)), uint8(pick(0, 0, 0, 1, 2, 3, 4, 5, 7, 0x80, 0x81, 0x83, 0x84, 0x85)),
			uint16(pick(0, 20, 28, 40, 48, 60, 100, 65535)), uint16(pick(0, 1, 10, 100, 1000, 65535)),
			uint16(pick(0, 4, 19, 20, 24, 39, 40, 60, 99, 65535)), uint16(pick(0, 2, 5, 6, 16, 65535)))

		before, beforeModel := kernel.Stats(), model.Stats()
		for _, q := range []tun.Queue{kernel, model} {
			if err := q.Write([][]byte{frame}); err != nil {
				t.Fatal(err)
			}
		}
		did := kernel.Stats().Refused.Invalid - before.Refused.Invalid
		would := model.Stats().Refused.Invalid - beforeModel.Refused.Invalid
		if did != would {
			t.Errorf("of a packet of %d bytes, %x, with the header %x the kernel (%s) refused %d, and memory %d",
				len(frame)-tun.HeaderLen, frame[tun.HeaderLen:min(len(frame), 60)], frame[:tun.HeaderLen], release(t), did, would)
		}
		if would == 0 {
			if _, err := memory.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
			taken++
		} else {
			refused++
		}
	}
	if taken < 1000 || refused < 1000 {
		t.Errorf("%d frames were taken and %d refused: too few to compare", taken, refused)
	}
}

func release(t *testing.T) string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(name.Release[:])
}
