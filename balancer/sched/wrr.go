package sched

import "github.com/lvsd/lvsd/stack"

// wrr is weighted round robin: passes over the list, of which each takes the servers whose weight reaches a level that
// sinks from the highest weight by the greatest common divisor of all weights. The level survives changes of the list,
// so the phase depends on history (ipvs.md 2.2).
type wrr struct {
	servers []*Server
	current int // picked last in this pass; None before the first
	level   int // cw
	highest int // mw: the level of the first pass
	step    int // di
}

func (w *wrr) Update(servers []*Server) {
	w.servers, w.current = servers, None
	greatest, divisor := 0, 0
	for _, s := range servers {
		greatest = max(greatest, s.Weight())
		divisor = gcd(divisor, s.Weight())
	}
	w.step = max(divisor, 1)
	w.highest = greatest - (w.step - 1)
	switch {
	case w.level > w.highest || w.level == 0:
		w.level = w.highest
	case w.step > 1:
		w.level = w.level/w.step*w.step + 1
	}
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (w *wrr) Schedule(stack.Flow) int {
	if w.highest <= 0 {
		return None
	}
	wholePass := w.current == None
	for {
		for i := w.current + 1; i < len(w.servers); i++ {
			if s := w.servers[i]; s.eligible() && s.Weight() >= w.level {
				w.current = i
				return i
			}
		}
		lastLevel := w.level <= w.step
		w.current = None
		w.level -= w.step
		if w.level <= 0 {
			w.level = w.highest
		}
		if lastLevel && wholePass {
			return None
		}
		wholePass = true
	}
}
