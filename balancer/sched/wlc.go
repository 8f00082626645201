package sched

import "github.com/lvsd/lvsd/stack"

// wlc is weighted least connection: the eligible server with the least overhead/weight. Quotients are compared by
// cross-multiplication, so no precision is lost.
type wlc struct{ servers []*Server }

func (l *wlc) Update(servers []*Server) { l.servers = servers }

func (l *wlc) Schedule(stack.Flow) int {
	best, bestLoad, bestWeight := None, int64(0), int64(0)
	for i, s := range l.servers {
		if !s.eligible() {
			continue
		}
		load, weight := s.overhead(), int64(s.Weight())
		if best == None || bestLoad*weight > load*bestWeight {
			best, bestLoad, bestWeight = i, load, weight
		}
	}
	return best
}
