package balancer

import (
	"fmt"
	"testing"

	"github.com/lvsd/lvsd/stack"
)

func (r *rig) checkInvariants() { r.Helper(); checkDirector(r, r.Director) }

// checkDirector fails the test if what a director keeps contradicts itself. Nobody else may use it meanwhile.
func checkDirector(tb testing.TB, d *Director) {
	tb.Helper()
	if err := inconsistency(d); err != nil {
		tb.Fatal(err)
	}
}

func inconsistency(d *Director) error {
	if err := tableInconsistency(d.conns); err != nil {
		return err
	}
	servers := d.snapshot.Load().servers
	total, active := make([]int, len(servers)), make([]int, len(servers))
	var err error
	d.conns.each(func(f *family, n uint32) {
		r := f.at(n)
		if int(r.server) >= len(servers) || servers[r.server] == nil {
			err = fmt.Errorf("a connection has server number %d, which nobody has", r.server)
			return
		}
		srv := servers[r.server]
		if _, _, rip := f.addrs(n); rip != srv.addr || r.serverPort != srv.port {
			err = fmt.Errorf("a connection to %s names server %s", rip, srv.addr)
		}
		tcp := r.protocol == stack.ProtocolTCP
		if !tcp && r.state != udpNormal || r.active != (tcp && tcpActive[r.state]) {
			err = fmt.Errorf("protocol %d, state %d, active %v", r.protocol, r.state, r.active)
		}
		total[r.server]++
		if r.active {
			active[r.server]++
		}
	})
	if err != nil {
		return err
	}
	for i, srv := range servers {
		if srv == nil {
			continue
		}
		if srv.number != uint32(i) {
			return fmt.Errorf("server number %d stands at %d", srv.number, i)
		}
		if srv.Total() != total[i] || srv.Active() != active[i] {
			return fmt.Errorf("server %s counts %d connections, %d of them active; the table has %d, %d",
				srv.addr, srv.Total(), srv.Active(), total[i], active[i])
		}
		if _, removed := d.removed[removedKey{srv.service.key, srv.addr, srv.port}]; removed == srv.available.Load() {
			return fmt.Errorf("server %s: available %v, among the removed %v", srv.addr, !removed, removed)
		}
	}
	return numbersInconsistency(d, servers)
}

// numbersInconsistency checks that every number is a server's or free, and never both.
func numbersInconsistency(d *Director, servers []*server) error {
	free := make(map[uint32]bool)
	for _, n := range d.free {
		if free[n] || int(n) >= len(servers) || servers[n] != nil {
			return fmt.Errorf("free number %d: twice %v, of %d", n, free[n], len(servers))
		}
		free[n] = true
	}
	for i, srv := range servers {
		if srv == nil && !free[uint32(i)] {
			return fmt.Errorf("number %d is neither used nor free", i)
		}
	}
	return nil
}

// tableInconsistency checks index, slab and free list of every shard against each other.
func tableInconsistency(t *connTable) error {
	live := int64(0)
	for i := range t.shard {
		for _, f := range [...]*family{&t.shard[i].v4, &t.shard[i].v6} {
			n, err := familyInconsistency(t, &t.shard[i], f)
			if err != nil {
				return fmt.Errorf("shard %d: %w", i, err)
			}
			live += int64(n)
		}
	}
	if count := t.count.Load(); count != live || count > t.limit {
		return fmt.Errorf("the table counts %d connections of %d allowed, and holds %d", count, t.limit, live)
	}
	return nil
}

func familyInconsistency(t *connTable, sh *shard, f *family) (live int, err error) {
	type half struct {
		n   uint32
		dir direction
	}
	if f.fresh == 0 && f.index == nil && f.free == 0 && f.words == 0 {
		return 0, nil // never used
	}
	words := make(map[half]bool)
	for _, w := range f.index {
		if w == 0 {
			continue
		}
		h := half{w.record(), w.dir()}
		if words[h] || int(h.n) >= f.fresh || !f.at(h.n).live {
			return 0, fmt.Errorf("the index names record %d of %d, direction %d: twice %v", h.n, f.fresh, h.dir, words[h])
		}
		words[h] = true
	}
	if len(words) != f.words || 4*f.words > 3*len(f.index) {
		return 0, fmt.Errorf("the index has %d words in %d places and counts %d", len(words), len(f.index), f.words)
	}
	for n := range uint32(f.fresh) {
		if !f.at(n).live {
			continue
		}
		live++
		for _, dir := range [...]direction{request, reply} {
			k := f.key(n, dir)
			at, fam, tag := t.locate(&k)
			if at != sh || fam != f {
				return 0, fmt.Errorf("record %d belongs into another shard or family", n)
			}
			if found, ok := f.find(tag, &k); !ok || f.key(found, dir) != k || dir == request && found != n {
				return 0, fmt.Errorf("record %d is not found, direction %d", n, dir)
			}
		}
	}
	if f.words != 2*live {
		return 0, fmt.Errorf("%d index words for %d connections", f.words, live)
	}
	free := 0
	for next := f.free; next != 0; next = f.at(next - 1).next {
		if free++; free > f.fresh || int(next) > f.fresh || f.at(next-1).live {
			return 0, fmt.Errorf("the free list is broken at record %d", next-1)
		}
	}
	if free+live != f.fresh {
		return 0, fmt.Errorf("%d records were used, %d are live and %d free", f.fresh, live, free)
	}
	return live, nil
}
