package balancer

import (
	"maps"
	"slices"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// Plan returns the changes that Apply would make, and makes none.
func (d *Director) Plan(spec Spec) ([]Change, error) {
	spec = spec.withDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return plan(&d.spec, &spec), nil
}

// Apply makes the director what spec says, all or nothing, and returns what it changed. It is the only way to change
// services, servers, timeouts and tunables. Connections go on; those of servers that are removed end according to the
// tunable expire_nodest_conn. All packets that come after Apply returns are treated by the new state.
func (d *Director) Apply(spec Spec, now time.Duration) ([]Change, error) {
	spec = spec.withDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	changes := plan(&d.spec, &spec)
	if len(changes) == 0 {
		d.spec = spec
		return nil, nil
	}
	old := d.snapshot.Load()
	a := &application{director: d, snapshot: old.clone(), services: maps.Clone(old.services), edits: make(map[*service][]func())}
	a.snapshot.servers = slices.Clone(old.servers)
	for i := range changes {
		a.prepare(&changes[i])
	}
	if a.servicesChanged {
		a.snapshot.setServices(a.services)
	}
	a.snapshot.timeouts, a.snapshot.tunables = newStateTimeouts(spec.Timeouts), spec.Tunables
	d.publish(a.snapshot)
	for svc, edits := range a.edits {
		svc.change(edits)
	}
	d.synchronize()
	if a.serversRemoved && spec.Tunables.ExpireNodestConn {
		d.sweep(now)
	}
	d.spec = spec
	return changes, nil
}

// Spec returns a copy of what was applied last.
func (d *Director) Spec() Spec {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.spec.withDefaults()
}

// application is the work of one Apply. New services and servers are made complete and published at once; what runs
// already is edited afterwards, when every worker knows the numbers of the new servers.
type application struct {
	director        *Director
	snapshot        *snapshot
	services        map[serviceKey]*service
	edits           map[*service][]func()
	servicesChanged bool
	serversRemoved  bool
}

func (a *application) prepare(c *Change) {
	svc := a.services[c.Service.key()]
	switch c.Kind {
	case AddService:
		svc = newService(c.Service)
		a.services[svc.key] = svc
		a.servicesChanged = true
	case RemoveService:
		delete(a.services, svc.key)
		a.servicesChanged, a.serversRemoved = true, true
		a.edit(svc, func() {
			for _, srv := range slices.Clone(svc.servers) {
				a.remove(svc, srv)
			}
		})
	case EditService:
		a.edit(svc, func() {
			svc.setScheduler(c.Service.Scheduler)
		})
	case AddServer:
		srv := a.server(svc, c.Server)
		if a.isNew(svc) {
			svc.add(srv)
		} else {
			a.edit(svc, func() { svc.add(srv) })
		}
	case EditServer:
		a.edit(svc, func() {
			srv := svc.find(c.Server.Address)
			srv.spec = c.Server
			srv.SetWeight(c.Server.Weight)
			svc.announce()
		})
	case RemoveServer:
		a.serversRemoved = true
		a.edit(svc, func() { a.remove(svc, svc.find(c.Server.Address)) })
	}
}

// isNew tells whether a service is made by this Apply, so that nobody sees it yet.
func (a *application) isNew(svc *service) bool { return a.snapshot.services[svc.key] != svc }

// edit notes a change of a service that runs. All changes of a service are made at once, or clients could meet it
// between the removal of one server and the addition of another.
func (a *application) edit(svc *service, f func()) { a.edits[svc] = append(a.edits[svc], f) }

func (a *application) remove(svc *service, srv *server) {
	svc.remove(srv)
	srv.idleSince = 0
	a.director.removed[removedKey{svc.key, srv.addr, srv.port}] = srv
}

// server makes a server of a service: a new one, or the one that was removed from the same service a while ago and
// still has connections or counters.
func (a *application) server(svc *service, spec ServerSpec) *server {
	d := a.director
	key := removedKey{svc.key, stack.AddrFrom(spec.Address.Addr()), spec.Address.Port()}
	srv := d.removed[key]
	if srv == nil {
		srv = newServer(a.number(), svc, spec)
		srv.path.Store(a.snapshot.env.path(spec.Address.Addr()))
		a.snapshot.servers = withServer(a.snapshot.servers, srv)
		return srv
	}
	delete(d.removed, key)
	if srv.service != svc {
		d.takeTraffic(srv.number)
		srv.service = svc
	}
	srv.spec = spec
	srv.SetWeight(spec.Weight)
	srv.available.Store(true)
	return srv
}

func (a *application) number() uint32 {
	d := a.director
	if n := len(d.free); n > 0 {
		number := d.free[n-1]
		d.free = d.free[:n-1]
		return number
	}
	return uint32(len(a.snapshot.servers))
}
