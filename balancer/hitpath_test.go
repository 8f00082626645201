package balancer

import (
	"testing"

	"github.com/lvsd/lvsd/stack"
)

// TestHitPathAllocatesNothing: a packet of a known connection, a reply of it, a packet that is none of ours and a refusal
// cost the garbage collector nothing.
func TestHitPathAllocatesNothing(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		protocol := uint8(r.service.Protocol)
		r.connected()
		for name, ends := range map[string][2]string{
			"request": {"c1", "vip"}, "reply": {"rs1", "c1"}, "foreign": {"rs1", "other"}, "refusal": {"c2", "closed"},
		} {
			template := rawFrame(protocol, r.end(ends[0]), r.end(ends[1]), stack.FlagACK)
			buffer := make([]byte, 0, stack.MinFrameCap)
			batch := make([][]byte, 1)
			out := 0
			allocations := testing.AllocsPerRun(1000, func() {
				batch[0] = append(buffer, template...)
				out += len(r.worker.Forward(batch, r.now))
			})
			if allocations != 0 {
				r.Errorf("%s: %v allocations a packet", name, allocations)
			}
			if out != 1001 {
				r.Errorf("%s: %d frames came out", name, out)
			}
		}
	})
}

// TestNewConnectionsAllocateSeldom: only the index grows.
func TestNewConnectionsAllocateSeldom(t *testing.T) {
	r := newRigWith(t, "tcp4", Options{MaxConnections: 1 << 17})
	i := 0
	frames := make([][]byte, 50_001)
	for i := range frames {
		frames[i] = rawFrame(stack.ProtocolTCP, clientAddr(i, false), r.service.Address, stack.FlagSYN)
	}
	allocations := testing.AllocsPerRun(len(frames)-1, func() {
		r.worker.Forward(frames[i:i+1], r.now)
		i++
	})
	if allocations != 0 { // the average, rounded down
		t.Errorf("%v allocations a connection", allocations)
	}
	if n, _ := r.ConnCount(); n != len(frames) {
		t.Errorf("%d connections", n)
	}
}
