package balancer

import "net/netip"

// Status is what a director is doing, for people and programs to read.
type Status struct {
	Services       []ServiceStatus   `json:"services"`
	Connections    int               `json:"connections"`
	MaxConnections int               `json:"max_connections"`
	Total          Traffic           `json:"total"` // of all services, also of those that are no more
	Frames         FrameStatus       `json:"frames"`
	Drops          map[string]uint64 `json:"drops"`   // packets dropped by reason, where there are any
	Answers        map[string]uint64 `json:"answers"` // packets the director made itself, by kind, where there are any
}

// FrameStatus counts frames, which are what the device moves at once: a packet, or a super-packet of up to 64 KiB.
type FrameStatus struct {
	In       uint64 `json:"in"`
	InBytes  uint64 `json:"in_bytes"`
	Out      uint64 `json:"out"`
	OutBytes uint64 `json:"out_bytes"`
	Passed   uint64 `json:"passed"`     // of Out: sent on unchanged, being of no service
	Average  uint64 `json:"in_average"` // bytes a frame that came in
}

// ServiceStatus is a service with what it has counted since it was made, its former servers' part included.
type ServiceStatus struct {
	Protocol  Protocol       `json:"protocol"`
	Address   netip.AddrPort `json:"address"`
	Scheduler string         `json:"scheduler"`
	Traffic   Traffic        `json:"traffic"`
	Servers   []ServerStatus `json:"servers"` // in the order in which they were added
}

// ServerStatus is a real server.
type ServerStatus struct {
	Address     netip.AddrPort `json:"address"`
	Weight      int            `json:"weight"`
	Active      int            `json:"active_connections"`
	Inactive    int            `json:"inactive_connections"`
	Traffic     Traffic        `json:"traffic"`
	MTU         int            `json:"mtu,omitempty"` // of the way to it, if known
	Unreachable bool           `json:"unreachable"`   // the director has no route or no next hop
}

// Status returns the state of everything. Each figure is right at some moment during the call.
func (d *Director) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	total := d.count()
	traffic := func(srv *server) Traffic {
		if int(srv.number) < len(total.traffic) {
			return total.traffic[srv.number]
		}
		return Traffic{}
	}
	former := make(map[*service]Traffic)
	for _, srv := range d.removed {
		t, own := former[srv.service], traffic(srv)
		t.add(&own)
		former[srv.service] = t
	}
	status := Status{Services: []ServiceStatus{}, Total: d.past, Frames: total.frames(), Drops: total.namedDrops(), Answers: total.namedAnswers()}
	status.Drops[dropFragmentHeld.String()] += d.fragments.Orphans()
	status.Connections, status.MaxConnections = d.ConnCount()
	for _, svc := range d.snapshot.Load().sorted() {
		s := svc.status(traffic)
		gone := former[svc]
		s.Traffic.add(&gone)
		status.Services = append(status.Services, s)
	}
	for i := range total.traffic {
		status.Total.add(&total.traffic[i])
	}
	for reason, n := range status.Drops {
		if n == 0 {
			delete(status.Drops, reason)
		}
	}
	return status
}

func (s *service) status(traffic func(*server) Traffic) ServiceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := ServiceStatus{
		Protocol: s.spec.Protocol, Address: s.spec.Address, Scheduler: s.spec.Scheduler, Traffic: s.past,
		Servers: make([]ServerStatus, len(s.servers)),
	}
	for i, srv := range s.servers {
		t, path := traffic(srv), srv.path.Load()
		status.Traffic.add(&t)
		status.Servers[len(s.servers)-1-i] = ServerStatus{
			Address: srv.spec.Address, Weight: srv.Weight(), Active: srv.Active(), Inactive: srv.Inactive(), Traffic: t,
			MTU: path.MTU, Unreachable: path.Unreachable,
		}
	}
	return status
}

// count adds up all workers. d.mu must be held.
func (d *Director) count() *counters {
	total := new(counters)
	total.add(&d.retired)
	for _, w := range d.workers {
		w.mu.Lock()
		total.add(&w.counters)
		w.mu.Unlock()
	}
	return total
}

func (c *counters) frames() FrameStatus {
	f := FrameStatus{In: c.framesIn, InBytes: c.bytesIn, Out: c.framesOut, OutBytes: c.bytesOut, Passed: c.passed}
	if f.In > 0 {
		f.Average = f.InBytes / f.In
	}
	return f
}

func (c *counters) namedDrops() map[string]uint64 {
	m := make(map[string]uint64)
	for i, n := range c.drops {
		m[DropReason(i).String()] += n
	}
	return m
}

func (c *counters) namedAnswers() map[string]uint64 {
	m := make(map[string]uint64)
	for a, name := range answerNames {
		if n := c.answers[a]; n > 0 {
			m[name] = n
		}
	}
	return m
}
