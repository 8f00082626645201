package balancer

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lvsd/lvsd/balancer/sched"
	"github.com/lvsd/lvsd/stack"
)

// service is a virtual service that runs. Its identity never changes; the rest is changed by Apply under mu.
type service struct {
	key serviceKey

	mu        sync.Mutex
	spec      ServiceSpec // without its servers
	servers   []*server   // newest first, as IPVS keeps and schedules them
	scheduler sched.Scheduler
	past      Traffic // of servers that are no more
}

// server is a real server that runs or, after its removal, is waited for by its connections.
type server struct {
	sched.Server
	number  uint32 // index in snapshot.servers and in every worker's traffic
	service *service
	spec    ServerSpec // changed under service.mu
	addr    stack.Addr
	port    uint16

	available atomic.Bool // not removed
	path      atomic.Pointer[Path]

	idleSince time.Duration // of a removed server: when it was first seen without connections; 0 if not yet
}

// Path is what is known of the way from the director to a real server.
type Path struct {
	MTU         int        // in bytes; 0 if unknown
	Unreachable bool       // the director has no route or no next hop
	Source      netip.Addr // the director's own address toward the server; may be unknown
}

var unknownPath = new(Path)

func newService(spec ServiceSpec) *service {
	spec.Servers = nil
	return &service{key: spec.key(), spec: spec, scheduler: sched.New(spec.Scheduler)}
}

func newServer(number uint32, svc *service, spec ServerSpec) *server {
	s := &server{number: number, service: svc, spec: spec, addr: stack.AddrFrom(spec.Address.Addr()), port: spec.Address.Port()}
	s.SetWeight(spec.Weight)
	s.available.Store(true)
	s.path.Store(unknownPath)
	return s
}

// schedule picks the server for a new connection, or nil.
func (s *service) schedule(f stack.Flow) *server {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.scheduler.Schedule(f)
	if i == sched.None {
		return nil
	}
	return s.servers[i]
}

// setScheduler replaces the scheduler by a fresh one.
func (s *service) setScheduler(name string) {
	s.spec.Scheduler = name
	s.scheduler = sched.New(name)
	s.announce()
}

// announce tells the scheduler of a change. It sees each one by itself, for some keep their place through them.
func (s *service) announce() {
	list := make([]*sched.Server, len(s.servers))
	for i, srv := range s.servers {
		list[i] = &srv.Server
	}
	s.scheduler.Update(list)
}

// change makes changes that no client sees by halves.
func (s *service) change(edits []func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, edit := range edits {
		edit()
	}
}

// add puts a server at the head of the list.
func (s *service) add(srv *server) {
	s.servers = slices.Insert(s.servers, 0, srv)
	s.announce()
}

// remove takes a server off the list. Its connections still refer to it.
func (s *service) remove(srv *server) {
	srv.available.Store(false)
	s.servers = slices.DeleteFunc(s.servers, func(x *server) bool { return x == srv })
	s.announce()
}

// find returns the server with an address, which must be there.
func (s *service) find(a netip.AddrPort) *server {
	return s.servers[slices.IndexFunc(s.servers, func(srv *server) bool { return srv.spec.Address == a })]
}
