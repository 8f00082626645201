package balancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lvsd/lvsd/stack"
)

func newTable(tb testing.TB, limit int) *connTable {
	tb.Helper()
	t, err := newConnTable(limit)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.close(); err != nil {
			tb.Error(err)
		}
	})
	return t
}

// tableConn is a connection as the table's caller sees it.
type tableConn struct {
	client, vip, rip                stack.Addr
	clientPort, vipPort, serverPort uint16
	protocol                        uint8
}

func (c *tableConn) requestKey() connKey {
	return connKey{c.client, c.vip, c.clientPort, c.vipPort, c.protocol, request}
}

func (c *tableConn) replyKey() connKey {
	return connKey{c.client, c.rip, c.clientPort, c.serverPort, c.protocol, reply}
}

func (t *connTable) insertConn(c *tableConn) (*family, uint32, bool) {
	k := c.requestKey()
	sh, fam, tag := t.locate(&k)
	sh.Lock()
	defer sh.Unlock()
	n, ok := t.insert(fam, tag, &k, c.rip, c.serverPort)
	return fam, n, ok
}

func (t *connTable) findKey(k connKey) (*family, uint32, bool) {
	sh, fam, tag := t.locate(&k)
	sh.Lock()
	defer sh.Unlock()
	n, ok := fam.find(tag, &k)
	return fam, n, ok
}

func (t *connTable) removeConn(c *tableConn) {
	k := c.requestKey()
	sh, fam, tag := t.locate(&k)
	sh.Lock()
	defer sh.Unlock()
	if n, ok := fam.find(tag, &k); ok {
		t.remove(fam, n)
	}
}

// modelTable is what the table should be: maps from keys to connections.
type modelTable struct {
	*connTable
	requests map[connKey]tableConn
	replies  map[connKey][]tableConn // newest last
}

func newModelTable(tb testing.TB, limit int) *modelTable {
	return &modelTable{newTable(tb, limit), make(map[connKey]tableConn), make(map[connKey][]tableConn)}
}

func (m *modelTable) insert(c tableConn) error {
	if _, there := m.requests[c.requestKey()]; there {
		return nil // the table's caller never does that
	}
	fam, n, ok := m.insertConn(&c)
	if !ok {
		return fmt.Errorf("there was no room for connection %d", len(m.requests)+1)
	}
	if fam.key(n, request) != c.requestKey() || fam.key(n, reply) != c.replyKey() || !fam.at(n).live {
		return fmt.Errorf("%+v became %+v", c, fam.key(n, request))
	}
	m.requests[c.requestKey()] = c
	m.replies[c.replyKey()] = append(m.replies[c.replyKey()], c)
	return nil
}

// remove takes the connection with c's request key away, if there is one.
func (m *modelTable) remove(c tableConn) {
	m.removeConn(&c)
	c = m.requests[c.requestKey()]
	delete(m.requests, c.requestKey())
	k := c.replyKey()
	m.replies[k] = slices.DeleteFunc(m.replies[k], func(x tableConn) bool { return x == c })
	if len(m.replies[k]) == 0 {
		delete(m.replies, k)
	}
}

// check looks a connection up in both directions, whether it is there or not.
func (m *modelTable) check(c tableConn) error {
	_, want := m.requests[c.requestKey()]
	if fam, n, ok := m.findKey(c.requestKey()); ok != want || ok && fam.key(n, request) != c.requestKey() {
		return fmt.Errorf("request %+v: found %v, want %v", c, ok, want)
	}
	same := m.replies[c.replyKey()]
	fam, n, ok := m.findKey(c.replyKey())
	if ok != (len(same) > 0) {
		return fmt.Errorf("reply %+v: found %v, want %v", c, ok, len(same) > 0)
	}
	if ok && fam.key(n, request) != same[len(same)-1].requestKey() {
		return fmt.Errorf("reply %+v: the answer is not the newest of %d", c, len(same))
	}
	return nil
}

// randomConn draws from few enough addresses that connections come again and share their reply keys.
func randomConn(random *rand.Rand) tableConn {
	client, vip, rip := random.IntN(40), random.IntN(3), random.IntN(4)
	c := tableConn{
		clientPort: uint16(random.IntN(1000)), vipPort: uint16(80 + random.IntN(2)), serverPort: uint16(8080 + random.IntN(2)),
		protocol: []uint8{stack.ProtocolTCP, stack.ProtocolUDP}[random.IntN(2)],
	}
	if random.IntN(2) == 0 {
		c.client = stack.AddrFrom4(0xac100000 | uint32(client))
		c.vip = stack.AddrFrom4(0x0a000000 | uint32(vip))
		c.rip = stack.AddrFrom4(0xc0a80100 | uint32(rip))
	} else {
		c.client = stack.AddrFrom16([16]byte{0: 0xfd, 1: 1, 15: byte(client)})
		c.vip = stack.AddrFrom16([16]byte{0: 0xfd, 1: 2, 15: byte(vip)})
		c.rip = stack.AddrFrom16([16]byte{0: 0xfd, 1: 3, 15: byte(rip)})
	}
	return c
}

// TestTableAgainstModel does a million random operations on the table and on maps. The balance of insertions and
// removals swings, so that indices grow and empty again.
func TestTableAgainstModel(t *testing.T) {
	operations := 1_000_000
	if testing.Short() {
		operations /= 10
	}
	m := newModelTable(t, 200_000)
	random := rand.New(rand.NewPCG(1, 2))
	most := 0
	for i := range operations {
		c := randomConn(random)
		growing := i/(operations/10)%2 == 0
		var err error
		switch dice := random.IntN(10); {
		case dice < 5:
			err = m.check(c)
		case growing == (dice < 9):
			err = m.insert(c)
		default:
			m.remove(c)
		}
		if err == nil && i%(operations/20) == 0 {
			err = tableInconsistency(m.connTable)
		}
		if err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
		most = max(most, len(m.requests))
		if count := int(m.count.Load()); count != len(m.requests) {
			t.Fatalf("operation %d: the table counts %d connections, want %d", i, count, len(m.requests))
		}
	}
	seen := 0
	m.each(func(f *family, n uint32) {
		if _, there := m.requests[f.key(n, request)]; !there {
			t.Errorf("the table holds %+v", f.key(n, request))
		}
		seen++
	})
	if seen != len(m.requests) {
		t.Errorf("the table shows %d connections, want %d", seen, len(m.requests))
	}
	t.Logf("up to %d connections", most)
	for _, c := range m.requests {
		m.remove(c)
	}
	if err := tableInconsistency(m.connTable); err != nil || m.count.Load() != 0 {
		t.Errorf("%d connections are left: %v", m.count.Load(), err)
	}
}

// sameReply are connections of one client and port with many VIPs that have one server: they share their reply key.
func sameReply(n int) (conns []tableConn) {
	for i := range n {
		conns = append(conns, tableConn{
			client: stack.AddrFrom4(0xac100001), vip: stack.AddrFrom4(0x0a000001 + uint32(i)), rip: stack.AddrFrom4(0xc0a8010b),
			clientPort: 1001, vipPort: 80, serverPort: 8080, protocol: stack.ProtocolTCP,
		})
	}
	return conns
}

// TestNewestOfEqualRepliesAnswers is ipvs.md 1.4: two connections that differ in the VIP only are ambiguous on the way
// back, and the newer one is found; the older one is found again when the newer one is gone.
func TestNewestOfEqualRepliesAnswers(t *testing.T) {
	m := newModelTable(t, 1000)
	conns := sameReply(5) // their ten words fit into the first index
	for _, c := range conns {
		if err := m.insert(c); err != nil {
			t.Fatal(err)
		}
		if err := m.check(c); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []int{4, 1, 3, 0, 2} { // the newest, a middle one, ...
		m.remove(conns[i])
		for _, c := range conns {
			if err := m.check(c); err != nil {
				t.Fatalf("without connection %d: %v", i, err)
			}
		}
	}
}

// TestNewestOfEqualRepliesAnswersAfterGrowth is the same when other connections have made the index grow since.
func TestNewestOfEqualRepliesAnswersAfterGrowth(t *testing.T) {
	m := newModelTable(t, 100_000)
	conns := sameReply(3)
	for _, c := range conns {
		if err := m.insert(c); err != nil {
			t.Fatal(err)
		}
	}
	home := conns[0].requestKey()
	sh, fam, _ := m.locate(&home)
	for port := uint16(2000); len(fam.index) < 512; port++ {
		c := conns[0]
		c.clientPort = port
		k := c.requestKey()
		if at, _, _ := m.locate(&k); at != sh {
			continue
		}
		before := len(fam.index)
		if err := m.insert(c); err != nil {
			t.Fatal(err)
		}
		if err := m.check(conns[0]); err != nil {
			t.Fatalf("when the index went from %d to %d words: %v", before, len(fam.index), err)
		}
	}
	for _, i := range []int{2, 1} {
		m.remove(conns[i])
		if err := m.check(conns[0]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGapsAreClosed takes words out of an index in which tags crowd, and looks all others up by the way a look-up goes.
// A tag is the place where its word wants to be, so tags that are set by hand make any crowd.
func TestGapsAreClosed(t *testing.T) {
	const length = 32
	random := rand.New(rand.NewPCG(3, 4))
	for name, tag := range map[string]func() uint32{
		"one place":            func() uint32 { return 7 },
		"the last place":       func() uint32 { return length - 1 },
		"the last and first":   func() uint32 { return length - 1 + uint32(random.IntN(2)) },
		"neighbours":           func() uint32 { return 5 + uint32(random.IntN(4)) },
		"two crowds that meet": func() uint32 { return []uint32{28, 2}[random.IntN(2)] },
		"equal in low bits":    func() uint32 { return 9 + length*uint32(random.IntN(1<<20)) },
		"anywhere":             random.Uint32,
	} {
		t.Run(name, func(t *testing.T) {
			for range 2000 {
				f := family{index: make([]indexWord, length), slab4: make([]record4, length)}
				var words []indexWord
				for n := range uint32(length * 3 / 4) {
					f.slab4[n].clientPort = uint16(n) // no two keys are equal
					words = append(words, makeWord(tag(), n, direction(random.IntN(2))))
					f.place(words[n])
				}
				random.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
				for len(words) > 0 {
					f.erase(words[0])
					words = words[1:]
					if f.words != len(words) {
						t.Fatalf("%d words are counted, want %d", f.words, len(words))
					}
					for _, w := range words {
						k := f.key(w.record(), w.dir())
						if n, ok := f.find(w.tag(), &k); !ok || n != w.record() {
							t.Fatalf("record %d is lost with %d words left: % x", w.record(), len(words), f.index)
						}
					}
				}
				if slices.ContainsFunc(f.index, func(w indexWord) bool { return w != 0 }) {
					t.Fatalf("words are left over: % x", f.index)
				}
			}
		})
	}
}

// TestEqualTagsAreToldApart has records whose tags and directions are all the same, so only their keys differ.
func TestEqualTagsAreToldApart(t *testing.T) {
	f := family{index: make([]indexWord, 64), slab4: make([]record4, 40)}
	for n := range uint32(len(f.slab4)) {
		f.slab4[n].client, f.slab4[n].clientPort = n/2, uint16(n%2)
		f.place(makeWord(5, n, request))
	}
	for n := range uint32(len(f.slab4)) {
		k := f.key(n, request)
		if got, ok := f.find(5, &k); !ok || got != n {
			t.Errorf("record %d: found %d, %v", n, got, ok)
		}
		k.dir = reply
		if got, ok := f.find(5, &k); ok {
			t.Errorf("record %d was found as %d in the other direction", n, got)
		}
		k = f.key(n, request)
		k.protocol ^= 1
		if _, ok := f.find(5, &k); ok {
			t.Errorf("record %d was found for another protocol", n)
		}
	}
}

// oneShard returns connections of one client that all fall into one shard.
func oneShard(t *connTable, n int, v6 bool) (conns []tableConn, fam *family) {
	var home *shard
	for port := 0; len(conns) < n; port++ {
		c := tableConn{
			client: stack.AddrFrom4(0xac100000 | uint32(port>>16)), vip: stack.AddrFrom4(0x0a000001), rip: stack.AddrFrom4(0xc0a8010b),
			clientPort: uint16(port), vipPort: 80, serverPort: 8080, protocol: stack.ProtocolTCP,
		}
		if v6 {
			c.client = stack.AddrFrom16([16]byte{0: 0xfd, 13: byte(port >> 16), 15: 1})
			c.vip, c.rip = stack.AddrFrom16([16]byte{0: 0xfd, 15: 2}), stack.AddrFrom16([16]byte{0: 0xfd, 15: 3})
		}
		k := c.requestKey()
		sh, f, _ := t.locate(&k)
		if home == nil {
			home, fam = sh, f
		}
		if sh == home {
			conns = append(conns, c)
		}
	}
	return conns, fam
}

// TestLimit fills the table to its limit.
func TestLimit(t *testing.T) {
	const limit = 1000
	m := newModelTable(t, limit)
	random := rand.New(rand.NewPCG(5, 6))
	for len(m.requests) < limit {
		if err := m.insert(randomConn(random)); err != nil {
			t.Fatal(err)
		}
	}
	extra := sameReply(1)[0]
	for range 3 {
		if _, _, ok := m.insertConn(&extra); ok {
			t.Fatal("there was room beyond the limit")
		}
		if err := m.check(extra); err != nil {
			t.Fatal(err)
		}
	}
	if err := tableInconsistency(m.connTable); err != nil {
		t.Fatal(err)
	}
	for _, c := range m.requests {
		m.remove(c)
		break
	}
	if err := m.insert(extra); err != nil {
		t.Fatal(err)
	}
}

// TestShardIsFull fills the slab of one shard, which is smaller than the table's limit, and uses its records again.
func TestShardIsFull(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6=%v", v6), func(t *testing.T) {
			m := newModelTable(t, 2000)
			room := len(m.shard[0].v4.slab4)
			conns, fam := oneShard(m.connTable, room+1, v6)
			for _, c := range conns[:room] {
				if err := m.insert(c); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, ok := m.insertConn(&conns[room]); ok {
				t.Fatal("a full slab had room")
			}
			if err := tableInconsistency(m.connTable); err != nil {
				t.Fatal(err)
			}
			random := rand.New(rand.NewPCG(7, 8))
			for range 1000 {
				gone := random.IntN(room)
				m.remove(conns[gone])
				conns[gone], conns[room] = conns[room], conns[gone]
				if err := m.insert(conns[gone]); err != nil {
					t.Fatal(err)
				}
			}
			if err := tableInconsistency(m.connTable); err != nil {
				t.Fatal(err)
			}
			if fam.fresh != room {
				t.Errorf("%d records were taken, want %d", fam.fresh, room)
			}
		})
	}
}

// TestFreedRecordsAreUsedFirst keeps the slab as small as the most connections there ever were.
func TestFreedRecordsAreUsedFirst(t *testing.T) {
	m := newModelTable(t, 10_000)
	conns, fam := oneShard(m.connTable, 60, false)
	for round := range 20 {
		from := round * 2
		for _, c := range conns[from : from+20] {
			if err := m.insert(c); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range conns[from : from+20] {
			m.remove(c)
		}
		if fam.fresh != 20 {
			t.Fatalf("round %d: %d records were taken for 20 connections", round, fam.fresh)
		}
	}
}

// TestRecordsStartClean: a record that is used again remembers nothing.
func TestRecordsStartClean(t *testing.T) {
	m := newModelTable(t, 100)
	conns := sameReply(2)
	fam, n, _ := m.insertConn(&conns[0])
	r := fam.at(n)
	r.last, r.timeout, r.server, r.packets, r.state, r.active = 1, 2, 3, 4, 5, true
	m.removeConn(&conns[0])
	fam, n, _ = m.insertConn(&conns[1])
	want := record{clientPort: 1001, vipPort: 80, serverPort: 8080, protocol: stack.ProtocolTCP, live: true}
	if got := *fam.at(n); got != want {
		t.Errorf("a record used again is %+v", got)
	}
}

// TestVisitorMayRemove empties the table while it is walked.
func TestVisitorMayRemove(t *testing.T) {
	m := newModelTable(t, 5000)
	random := rand.New(rand.NewPCG(9, 10))
	for range 3000 {
		if err := m.insert(randomConn(random)); err != nil {
			t.Fatal(err)
		}
	}
	visits := 0
	m.each(func(f *family, n uint32) {
		visits++
		m.connTable.remove(f, n)
	})
	if visits != len(m.requests) || m.count.Load() != 0 {
		t.Errorf("%d visits to %d connections, %d left", visits, len(m.requests), m.count.Load())
	}
	if err := tableInconsistency(m.connTable); err != nil {
		t.Error(err)
	}
}
