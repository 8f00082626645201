package balancer

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/stack"
)

// connTable holds the connections. It is cut into shards by the client's end of a connection, which is the same in both
// directions, so that a packet takes one lock, and everything about a connection happens under it.
//
// In a shard each address family has an index and a slab. The index is open addressing over words of a tag, a direction
// and a record number; every connection has two words, one a direction. The slab is a fixed array of records in one
// anonymous mapping, of which the kernel gives memory to what is used.
type connTable struct {
	limit int64
	count atomic.Int64
	seed  [3]uint64
	slab  []byte // the mapping behind all records
	shard [shardCount]shard
}

const shardCount = 256

type shard struct {
	sync.Mutex
	v4, v6 family
	_      [56]byte // shards share no cache line
}

var _ = [1]struct{}{}[unsafe.Sizeof(shard{})%64]

// family is the part of a shard for one address family; exactly one of slab4 and slab6 is used.
type family struct {
	slab4 []record4
	slab6 []record6
	index []indexWord // a power of two long, or empty
	words int         // in use
	fresh int         // records never used yet start here
	free  uint32      // first free record of those used before, plus 1
}

// indexWord is a tag in the upper half, and in the lower half the direction as the lowest bit and the record's number
// plus 1 above it. The zero word is empty.
type indexWord uint64

func makeWord(tag uint32, n uint32, dir direction) indexWord {
	return indexWord(uint64(tag)<<32 | uint64(n+1)<<1 | uint64(dir))
}

// nameMask covers what a look-up compares: tag and direction.
const nameMask = 1<<64 - 1<<32 | 1

func (w indexWord) tag() uint32    { return uint32(w >> 32) }
func (w indexWord) record() uint32 { return uint32(w)>>1 - 1 }
func (w indexWord) dir() direction { return direction(w & 1) }

const firstIndexLen = 16

// newConnTable returns a table for up to limit connections. It reserves address space for all of them and takes memory
// as they come.
func newConnTable(limit int) (*connTable, error) {
	if limit < 1 {
		return nil, fmt.Errorf("a connection table for %d connections: there must be room for one", limit)
	}
	mean := float64(limit) / shardCount
	perShard := int(mean+8*math.Sqrt(mean)) + 16 // a random spread stays below this
	size := shardCount * perShard * int(unsafe.Sizeof(record4{})+unsafe.Sizeof(record6{}))
	slab, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d MiB of address space for %d connections: %w; lower director.connections", size>>20, limit, err)
	}
	t := &connTable{limit: int64(limit), slab: slab, seed: [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}}
	r4 := unsafe.Slice((*record4)(unsafe.Pointer(&slab[0])), shardCount*perShard)
	r6 := unsafe.Slice((*record6)(unsafe.Pointer(&slab[len(r4)*int(unsafe.Sizeof(record4{}))])), shardCount*perShard)
	for i := range t.shard {
		t.shard[i].v4.slab4 = r4[i*perShard : (i+1)*perShard]
		t.shard[i].v6.slab6 = r6[i*perShard : (i+1)*perShard]
	}
	return t, nil
}

// close gives the memory back. Nobody may use the table any more.
func (t *connTable) close() error { return unix.Munmap(t.slab) }

// locate returns where a key belongs: the shard and family, and the tag of its index word. The shard is chosen by the
// client's end alone.
func (t *connTable) locate(k *connKey) (*shard, *family, uint32) {
	chi, clo := k.client.Words()
	ohi, olo := k.other.Words()
	client := mix(clo^t.seed[0], chi^t.seed[1]^uint64(k.clientPort)<<8^uint64(k.protocol))
	client = mix(client^t.seed[2], golden) // ports and addresses only step; one round would leave shards uneven
	both := mix(client^olo, ohi^t.seed[2]^uint64(k.otherPort)<<8^uint64(k.dir))
	sh := &t.shard[client>>(64-8)]
	if k.client.Is4() {
		return sh, &sh.v4, uint32(both)
	}
	return sh, &sh.v6, uint32(both)
}

// golden is 2^64 divided by the golden ratio.
const golden = 0x9e3779b97f4a7c15

// mix folds the product of two words: cheap, and unpredictable while the seeds in them are.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// at returns a record.
func (f *family) at(n uint32) *record {
	if f.slab4 != nil {
		return &f.slab4[n].record
	}
	return &f.slab6[n].record
}

// addrs returns the addresses of a record.
func (f *family) addrs(n uint32) (client, vip, rip stack.Addr) {
	if f.slab4 != nil {
		r := &f.slab4[n]
		return stack.AddrFrom4(r.client), stack.AddrFrom4(r.vip), stack.AddrFrom4(r.rip)
	}
	r := &f.slab6[n]
	return r.client, r.vip, r.rip
}

// key returns the key of one direction of a record.
func (f *family) key(n uint32, dir direction) connKey {
	r := f.at(n)
	client, vip, rip := f.addrs(n)
	if dir == reply {
		return connKey{client, rip, r.clientPort, r.serverPort, r.protocol, reply}
	}
	return connKey{client, vip, r.clientPort, r.vipPort, r.protocol, request}
}

// find returns the number of the record with a key, or false. The shard must be locked.
func (f *family) find(tag uint32, k *connKey) (uint32, bool) {
	if len(f.index) == 0 {
		return 0, false
	}
	mask := uint32(len(f.index) - 1)
	name := uint64(tag)<<32 | uint64(k.dir)
	for i := tag & mask; ; i = (i + 1) & mask {
		w := f.index[i]
		if w == 0 {
			return 0, false
		}
		if uint64(w)&nameMask == name && f.matches(w.record(), k) {
			return w.record(), true
		}
	}
}

func (f *family) matches(n uint32, k *connKey) bool {
	r := f.at(n)
	if r.clientPort != k.clientPort || r.protocol != k.protocol {
		return false
	}
	client, vip, rip := f.addrs(n)
	if k.dir == reply {
		return client == k.client && rip == k.other && r.serverPort == k.otherPort
	}
	return client == k.client && vip == k.other && r.vipPort == k.otherPort
}

// insert makes a record with both its index words and returns its number; false says that the slab is full. The caller
// fills in all but ports, addresses and protocol. No connection with the same request key may be there. One with the
// same reply key may: two VIPs can lead a client to one server and port. Then the newer one answers first, as in IPVS
// (ipvs.md 1.4).
func (t *connTable) insert(f *family, tag uint32, k *connKey, rip stack.Addr, serverPort uint16) (uint32, bool) {
	if t.count.Add(1) > t.limit {
		t.count.Add(-1)
		return 0, false
	}
	n, ok := f.allocate()
	if !ok {
		t.count.Add(-1)
		return 0, false
	}
	r := f.at(n)
	*r = record{clientPort: k.clientPort, vipPort: k.otherPort, serverPort: serverPort, protocol: k.protocol, live: true}
	if f.slab4 != nil {
		r4 := &f.slab4[n]
		r4.client, r4.vip, r4.rip = k.client.V4(), k.other.V4(), rip.V4()
	} else {
		r6 := &f.slab6[n]
		r6.client, r6.vip, r6.rip = k.client, k.other, rip
	}
	f.reserve()
	f.place(makeWord(tag, n, request))
	replyKey := f.key(n, reply)
	_, _, replyTag := t.locate(&replyKey)
	f.place(makeWord(replyTag, n, reply))
	return n, true
}

// allocate takes a record from those given back, else a new one.
func (f *family) allocate() (uint32, bool) {
	if f.free != 0 {
		n := f.free - 1
		f.free = f.at(n).next
		return n, true
	}
	if f.fresh >= len(f.slab4)+len(f.slab6) {
		return 0, false
	}
	f.fresh++
	return uint32(f.fresh - 1), true
}

// reserve makes room for two more index words; at most three quarters of the index are used. Words of equal keys keep
// their order: they are taken in the order in which a look-up meets them, which begins behind an empty word.
func (f *family) reserve() {
	if 4*(f.words+2) <= 3*len(f.index) {
		return
	}
	old := f.index
	f.index = make([]indexWord, max(firstIndexLen, 2*len(old)))
	mask := uint32(len(f.index) - 1)
	start := slices.Index(old, 0)
	for i := range old {
		w := old[(start+i)%len(old)]
		if w == 0 {
			continue
		}
		at := w.tag() & mask
		for f.index[at] != 0 {
			at = (at + 1) & mask
		}
		f.index[at] = w
	}
}

// place puts a word into the index, in front of an equal key if there is one.
func (f *family) place(w indexWord) {
	f.words++
	mask := uint32(len(f.index) - 1)
	for i := w.tag() & mask; ; i = (i + 1) & mask {
		there := f.index[i]
		if there == 0 {
			f.index[i] = w
			return
		}
		if (there^w)&nameMask == 0 && f.key(there.record(), w.dir()) == f.key(w.record(), w.dir()) {
			f.index[i], w = w, there
		}
	}
}

// remove takes a record and its words out of the table. The shard must be locked.
func (t *connTable) remove(f *family, n uint32) {
	for _, dir := range [...]direction{request, reply} {
		k := f.key(n, dir)
		_, _, tag := t.locate(&k)
		f.erase(makeWord(tag, n, dir))
	}
	r := f.at(n)
	r.live, r.next = false, f.free
	f.free = n + 1
	t.count.Add(-1)
}

// erase deletes a word and closes the gap, so that the index needs no tombstones.
func (f *family) erase(w indexWord) {
	mask := uint32(len(f.index) - 1)
	gap := w.tag() & mask
	for f.index[gap] != w {
		gap = (gap + 1) & mask
	}
	for i := (gap + 1) & mask; f.index[i] != 0; i = (i + 1) & mask {
		home := f.index[i].tag() & mask
		if (i-home)&mask >= (i-gap)&mask {
			f.index[gap] = f.index[i]
			gap = i
		}
	}
	f.index[gap] = 0
	f.words--
}

// each calls visit for every live record, shard by shard, with the shard locked. visit may remove the record it is
// given.
func (t *connTable) each(visit func(*family, uint32)) {
	for i := range t.shard {
		sh := &t.shard[i]
		sh.Lock()
		sh.each(visit)
		sh.Unlock()
	}
}

func (sh *shard) each(visit func(*family, uint32)) {
	for _, f := range [...]*family{&sh.v4, &sh.v6} {
		for n := range uint32(f.fresh) {
			if f.at(n).live {
				visit(f, n)
			}
		}
	}
}
