package sched

import "github.com/lvsd/lvsd/stack"

// lc is least connection: the eligible server with the least overhead. Weights are ignored but for 0.
type lc struct{ servers []*Server }

func (l *lc) Update(servers []*Server) { l.servers = servers }

func (l *lc) Schedule(stack.Flow) int {
	best, least := None, int64(0)
	for i, s := range l.servers {
		if !s.eligible() {
			continue
		}
		if load := s.overhead(); best == None || load < least {
			best, least = i, load
		}
	}
	return best
}
