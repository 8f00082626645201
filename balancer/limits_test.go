package balancer

import (
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// TestLimits bounds what the director says by itself: errors by address, all of it together.
func TestLimits(t *testing.T) {
	r := newRigWith(t, "udp4", Options{MaxConnections: 10, Limits: stack.Limits{PerAddress: time.Second, PerSecond: 20}})
	for range 6 {
		r.script(`c1 -> closed UDP => vip -> c1 unreachable-port {c1 -> closed UDP}`)
	}
	r.script(`
		c1 -> closed UDP    => drop rate_limited
		c1 -> vip PING      => vip -> c1 PONG            # pings are bounded in all only
		c2 -> closed UDP    => vip -> c2 unreachable-port {c2 -> closed UDP}
		wait 1s
		c1 -> closed UDP    => vip -> c1 unreachable-port {c1 -> closed UDP}
		c1 -> closed UDP    => drop rate_limited
		wait 10s
	`)
	for range 20 {
		r.script(`c1 -> vip PING => vip -> c1 PONG`)
	}
	r.script(`
		c1 -> vip PING      => drop rate_limited
		c2 -> closed UDP    => drop rate_limited
		c1 -> vip UDP       => c1 -> rs1 UDP             # balancing is not bounded
		wait 50ms
		c1 -> vip PING      => vip -> c1 PONG
		c1 -> vip PING      => drop rate_limited
	`)
}

// TestLimitsHoldForAllWorkers: the bounds are the director's, however many queues it has.
func TestLimitsHoldForAllWorkers(t *testing.T) {
	r := newRigWith(t, "udp4", Options{MaxConnections: 10, Limits: stack.Limits{PerSecond: 10}})
	answers := 0
	for range 4 {
		w := r.NewWorker()
		for range 10 {
			answers += len(w.Forward([][]byte{r.book.frame(r, "c1 -> vip PING")}, r.now))
		}
		w.Close()
	}
	if answers > 10 {
		r.Errorf("four workers gave %d answers in one moment, 10 a second are allowed", answers)
	}
}
