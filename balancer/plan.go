package balancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Change is one step from what runs to what is wanted. Its String is a line of a plan.
type Change struct {
	Kind    ChangeKind
	Service ServiceSpec // for services and servers: the service as it will be, or was
	Server  ServerSpec  // for servers likewise
	Detail  string      // what of it changes, in words
}

// ChangeKind says what a Change changes.
type ChangeKind uint8

const (
	AddService ChangeKind = iota
	EditService
	RemoveService // with all its servers
	AddServer
	EditServer
	RemoveServer
	SetTimeout
	SetTunable
)

func (c Change) String() string {
	service := fmt.Sprintf("%s %s", c.Service.Protocol, c.Service.Address)
	switch c.Kind {
	case AddService:
		return fmt.Sprintf("add service %s (%s)", service, c.Detail)
	case EditService:
		return fmt.Sprintf("change service %s: %s", service, c.Detail)
	case RemoveService:
		return fmt.Sprintf("remove service %s (%s)", service, c.Detail)
	case AddServer:
		return fmt.Sprintf("add server %s to %s (%s)", c.Server.Address, service, c.Detail)
	case EditServer:
		return fmt.Sprintf("change server %s of %s: %s", c.Server.Address, service, c.Detail)
	case RemoveServer:
		return fmt.Sprintf("remove server %s from %s", c.Server.Address, service)
	}
	return "set " + c.Detail
}

// withDefaults returns a copy of a spec, shared with nobody, in which nothing is left out.
func (s Spec) withDefaults() Spec {
	s.Services = slices.Clone(s.Services)
	for i := range s.Services {
		svc := &s.Services[i]
		svc.Scheduler = cmp.Or(svc.Scheduler, DefaultScheduler)
		svc.Servers = slices.Clone(svc.Servers)
	}
	def := DefaultTimeouts()
	s.Timeouts.TCP = cmp.Or(s.Timeouts.TCP, def.TCP)
	s.Timeouts.TCPFin = cmp.Or(s.Timeouts.TCPFin, def.TCPFin)
	s.Timeouts.UDP = cmp.Or(s.Timeouts.UDP, def.UDP)
	return s
}

// plan lists the changes that lead from one valid spec to another, in the order in which they are made. It puts the
// servers of to in the order that results: those that were there stay in their places, new ones come last.
func plan(from, to *Spec) []Change {
	var changes []Change
	old := make(map[serviceKey]*ServiceSpec, len(from.Services))
	for i := range from.Services {
		old[from.Services[i].key()] = &from.Services[i]
	}
	for i := range to.Services {
		svc := &to.Services[i]
		before := old[svc.key()]
		delete(old, svc.key())
		switch {
		case before == nil:
			changes = append(changes, Change{Kind: AddService, Service: *svc, Detail: svc.Scheduler})
			before = &ServiceSpec{}
		case before.Scheduler != svc.Scheduler:
			changes = append(changes, Change{Kind: EditService, Service: *svc,
				Detail: fmt.Sprintf("scheduler %s -> %s", before.Scheduler, svc.Scheduler)})
		}
		changes = append(changes, planServers(before, svc)...)
	}
	for i := range from.Services {
		if svc := &from.Services[i]; old[svc.key()] != nil {
			changes = append(changes, Change{Kind: RemoveService, Service: *svc, Detail: count(len(svc.Servers), "server")})
		}
	}
	return append(changes, planSettings(from, to)...)
}

func planServers(from, to *ServiceSpec) []Change {
	var changes []Change
	wanted := make(map[netip.AddrPort]*ServerSpec, len(to.Servers))
	for i := range to.Servers {
		wanted[to.Servers[i].Address] = &to.Servers[i]
	}
	for _, was := range from.Servers {
		switch srv := wanted[was.Address]; {
		case srv == nil:
			changes = append(changes, Change{Kind: RemoveServer, Service: *to, Server: was})
		case srv.Weight != was.Weight:
			changes = append(changes, Change{Kind: EditServer, Service: *to, Server: *srv,
				Detail: fmt.Sprintf("weight %d -> %d", was.Weight, srv.Weight)})
		}
		delete(wanted, was.Address)
	}
	for _, srv := range to.Servers {
		if wanted[srv.Address] != nil {
			changes = append(changes, Change{Kind: AddServer, Service: *to, Server: srv, Detail: fmt.Sprintf("weight %d", srv.Weight)})
		}
	}
	place := make(map[netip.AddrPort]int, len(from.Servers))
	for i, was := range from.Servers {
		place[was.Address] = i - len(from.Servers)
	}
	slices.SortStableFunc(to.Servers, func(a, b ServerSpec) int { return place[a.Address] - place[b.Address] })
	return changes
}

func planSettings(from, to *Spec) []Change {
	var changes []Change
	timeout := func(name string, was, is time.Duration) {
		if was != is {
			changes = append(changes, Change{Kind: SetTimeout, Detail: fmt.Sprintf("timeout %s: %v -> %v", name, was, is)})
		}
	}
	timeout("tcp", from.Timeouts.TCP, to.Timeouts.TCP)
	timeout("tcpfin", from.Timeouts.TCPFin, to.Timeouts.TCPFin)
	timeout("udp", from.Timeouts.UDP, to.Timeouts.UDP)
	for _, t := range allTunables {
		if was, is := t.get(&from.Tunables), t.get(&to.Tunables); was != is {
			changes = append(changes, Change{Kind: SetTunable, Detail: fmt.Sprintf("tunable %s: %d -> %d", t.name, was, is)})
		}
	}
	return changes
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
