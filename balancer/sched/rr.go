package sched

import (
	"slices"

	"github.com/lvsd/lvsd/stack"
)

// rr is round robin: the next eligible server behind the one picked last. The weight only matters as zero or not zero.
type rr struct {
	servers []*Server
	cursor  int // picked last; None stands before the first server
}

// Update keeps the place in the round: a new server comes in at the head and so is met at the next wrap; a server
// removed under the cursor leaves it with its predecessor.
func (r *rr) Update(servers []*Server) {
	at := r.cursor
	for at != None && !slices.Contains(servers, r.servers[at]) {
		at--
	}
	if at != None {
		at = slices.Index(servers, r.servers[at])
	}
	r.servers, r.cursor = servers, at
}

func (r *rr) Schedule(stack.Flow) int {
	at := r.cursor
	for range r.servers {
		at++
		if at == len(r.servers) {
			at = 0
		}
		if r.servers[at].eligible() {
			r.cursor = at
			return at
		}
	}
	return None
}
