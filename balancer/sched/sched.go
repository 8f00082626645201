// Package sched decides which real server a new connection goes to. There is one file a scheduler; each states its rule
// and follows the kernel's IPVS to the letter, down to ties (ipvs.md section 2).
package sched

import (
	"slices"
	"sync/atomic"

	"github.com/lvsd/lvsd/stack"
)

// Server is what schedulers see of a real server. The counters change while schedulers look at them; a decision made on
// a value that is a moment old is as good as one made a moment earlier.
type Server struct {
	weight     atomic.Int32
	active     atomic.Int32
	total      atomic.Int32
	overloaded atomic.Bool
}

// SetWeight sets the weight, 0 or more. At 0 no scheduler picks the server.
func (s *Server) SetWeight(w int) { s.weight.Store(int32(w)) }

// Weight returns the weight.
func (s *Server) Weight() int { return int(s.weight.Load()) }

// AddActive changes the number of active connections, AddTotal that of active and inactive ones together. Both return
// the new number.
func (s *Server) AddActive(n int) int { return int(s.active.Add(int32(n))) }
func (s *Server) AddTotal(n int) int  { return int(s.total.Add(int32(n))) }

// Active returns the number of active connections.
func (s *Server) Active() int { return int(s.active.Load()) }

// Inactive returns the number of connections that are not active. The two counters change one after the other, so the
// difference may be negative for a moment; that is shown as none.
func (s *Server) Inactive() int { return max(0, s.Total()-s.Active()) }

// Total returns the number of connections.
func (s *Server) Total() int { return int(s.total.Load()) }

// SetOverloaded marks a server that is over its upper threshold.
func (s *Server) SetOverloaded(v bool) { s.overloaded.Store(v) }

// eligible tells whether the server may be given a connection at all.
func (s *Server) eligible() bool { return s.weight.Load() > 0 && !s.overloaded.Load() }

// overhead is the load by which lc and wlc compare: an active connection weighs 257 inactive ones.
func (s *Server) overhead() int64 { return 256*int64(s.active.Load()) + int64(s.total.Load()) }

// None is what Schedule returns when no server can be picked.
const None = -1

// Scheduler picks servers for one service. It is not safe for concurrent use.
type Scheduler interface {
	// Update is told the servers, newest first, after each single addition, removal or edit. The scheduler keeps the
	// slice; the caller must not change it any more.
	Update(servers []*Server)
	// Schedule returns the index, in the slice of the last Update, of the server for a new connection by a client
	// whose first packet has the given flow, or None.
	Schedule(flow stack.Flow) int
}

var constructors = map[string]func() Scheduler{
	"rr":  func() Scheduler { return &rr{cursor: None} },
	"wrr": func() Scheduler { return &wrr{current: None} },
	"lc":  func() Scheduler { return &lc{} },
	"wlc": func() Scheduler { return &wlc{} },
}

// Names lists the schedulers that New knows, in alphabetical order.
func Names() []string {
	names := make([]string, 0, len(constructors))
	for name := range constructors {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Known tells whether there is a scheduler of a name.
func Known(name string) bool { return constructors[name] != nil }

// New returns a new scheduler without servers. The name must be a known one.
func New(name string) Scheduler { return constructors[name]() }
