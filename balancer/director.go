package balancer

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// Options are what a director is made with. Zero fields have defaults.
type Options struct {
	MaxConnections int          // bound of the connection table; DefaultMaxConnections if 0
	Limits         stack.Limits // of answers that the director makes itself; no limits if zero
}

// DefaultMaxConnections is the default bound of the connection table.
const DefaultMaxConnections = 1 << 20

// Director is a load balancer without a device. Its methods may be called concurrently.
type Director struct {
	conns     *connTable
	fragments *stack.Fragments[fate]
	snapshot  atomic.Pointer[snapshot]
	limiter   struct {
		sync.Mutex
		*stack.Limiter
	}

	mu      sync.Mutex // for all below, and for replacing the snapshot
	spec    Spec       // what was applied last
	workers []*Worker
	retired counters               // of workers that are closed
	removed map[removedKey]*server // servers that are removed and have, or had a moment ago, connections
	free    []uint32               // numbers that no server has
	past    Traffic                // counted under numbers that another server has now, or a server of another service
}

// New returns a director without services. Close gives its memory back.
func New(o Options) (*Director, error) {
	conns, err := newConnTable(cmp.Or(o.MaxConnections, DefaultMaxConnections))
	if err != nil {
		return nil, err
	}
	d := &Director{
		conns:     conns,
		fragments: stack.NewFragments[fate](),
		spec:      DefaultSpec(),
		removed:   make(map[removedKey]*server),
	}
	d.limiter.Limiter = stack.NewLimiter(o.Limits)
	s := &snapshot{timeouts: newStateTimeouts(d.spec.Timeouts), tunables: d.spec.Tunables, env: newEnvironment(Environment{})}
	s.setServices(make(map[serviceKey]*service))
	d.snapshot.Store(s)
	return d, nil
}

// Close gives the connection table's memory back. All workers must be closed, and no method may be called any more.
func (d *Director) Close() error { return d.conns.close() }

// SetEnvironment tells the director of its surroundings. It holds for all packets that come after it returns.
func (d *Director) SetEnvironment(e Environment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.snapshot.Load().clone()
	s.env = newEnvironment(e)
	for _, srv := range s.servers {
		if srv != nil {
			srv.path.Store(s.env.path(srv.spec.Address.Addr()))
		}
	}
	d.publish(s)
}

// publish makes a snapshot the one in force. When it returns, no worker uses an older one.
func (d *Director) publish(s *snapshot) {
	for _, w := range d.workers {
		w.mu.Lock()
		w.counters.growTo(len(s.servers))
		w.mu.Unlock()
	}
	d.snapshot.Store(s)
	d.synchronize()
}

// synchronize returns when every batch that was under way is over.
func (d *Director) synchronize() {
	for _, w := range d.workers {
		w.mu.Lock()
		//lint:ignore SA2001 to have had the lock is all that is wanted
		w.mu.Unlock()
	}
}

func (d *Director) retire(w *Worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.workers, w); i >= 0 {
		d.workers = slices.Delete(d.workers, i, i+1)
		d.retired.add(&w.counters)
	}
}

// Expire ends connections whose time is over, and forgets removed servers without connections. Call it about every
// second; a packet that meets an expired connection in between does not revive it.
func (d *Director) Expire(now time.Duration) {
	d.fragments.Expire(now)
	d.sweep(now)
	d.forgetServers(now)
}

// sweep ends connections that are idle for too long or, with expire_nodest_conn, have lost their server.
func (d *Director) sweep(now time.Duration) {
	t := ticksOf(now)
	d.conns.each(func(f *family, n uint32) {
		s := d.snapshot.Load() // inside the shard's lock, so it knows every server that a record can name
		srv := s.servers[f.at(n).server]
		if f.at(n).expired(t) || s.tunables.ExpireNodestConn && !srv.available.Load() {
			d.end(f, n, srv)
		}
	})
}

// end takes a connection from the table and from its server's counts. The shard must be locked.
func (d *Director) end(f *family, n uint32, srv *server) {
	if f.at(n).active {
		srv.AddActive(-1)
	}
	srv.AddTotal(-1)
	d.conns.remove(f, n)
}

// removedKey is by what a removed server is found when it is added again: the same server of the same service.
type removedKey struct {
	service serviceKey
	addr    stack.Addr
	port    uint16
}

// A removed server is forgotten when it has had no connections for this long, as in IPVS (ipvs.md 1.6). Until then it
// comes back with its counters.
const removedIdle = 2 * time.Minute

func (d *Director) forgetServers(now time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	forgotten := make(map[removedKey]*server)
	for key, srv := range d.removed {
		switch {
		case srv.Total() > 0:
			srv.idleSince = 0
		case srv.idleSince == 0:
			srv.idleSince = max(now, 1)
		case now-srv.idleSince >= removedIdle:
			forgotten[key] = srv
		}
	}
	if len(forgotten) == 0 {
		return
	}
	s := d.snapshot.Load().clone()
	s.servers = slices.Clone(s.servers)
	for _, srv := range forgotten {
		s.servers[srv.number] = nil
	}
	d.publish(s)
	for key, srv := range forgotten {
		d.settle(srv)
		delete(d.removed, key)
		d.free = append(d.free, srv.number)
	}
}

// settle moves what a server's number has counted to its service's past, for the next server with the number.
func (d *Director) settle(srv *server) {
	total := d.takeTraffic(srv.number)
	srv.service.mu.Lock()
	defer srv.service.mu.Unlock()
	srv.service.past.add(&total)
}

// takeTraffic returns and zeroes what all workers have counted under a number.
func (d *Director) takeTraffic(number uint32) Traffic {
	var total Traffic
	take := func(c *counters) {
		if int(number) < len(c.traffic) {
			total.add(&c.traffic[number])
			c.traffic[number] = Traffic{}
		}
	}
	take(&d.retired)
	for _, w := range d.workers {
		w.mu.Lock()
		take(&w.counters)
		w.mu.Unlock()
	}
	d.past.add(&total)
	return total
}

// ConnCount returns how many connections the table holds and how many it may.
func (d *Director) ConnCount() (count, limit int) {
	return int(d.conns.count.Load()), int(d.conns.limit)
}

// sorted returns the services in the order of their addresses.
func (s *snapshot) sorted() []*service {
	return slices.SortedFunc(maps.Values(s.services), func(a, b *service) int {
		return cmp.Or(
			a.spec.Address.Compare(b.spec.Address),
			cmp.Compare(a.spec.Protocol, b.spec.Protocol),
		)
	})
}
