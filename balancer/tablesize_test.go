package balancer

import (
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/lvsd/lvsd/stack"
)

// TestRecordsAndCacheLines: a look at a record costs one line of the cache for IPv4 and at most two for IPv6.
func TestRecordsAndCacheLines(t *testing.T) {
	m := newTable(t, 1000)
	for i := range m.shard {
		sh := &m.shard[i]
		if at := uintptr(unsafe.Pointer(sh)); at%64 != 0 {
			t.Fatalf("shard %d: %#x is not the start of a cache line", i, at)
		}
		for n := range sh.v4.slab4 {
			if at := uintptr(unsafe.Pointer(&sh.v4.slab4[n])); at/64 != (at+unsafe.Sizeof(record4{})-1)/64 {
				t.Fatalf("shard %d: the IPv4 record at %#x is on more than one line", i, at)
			}
			if at := uintptr(unsafe.Pointer(&sh.v6.slab6[n])); at/64+1 < (at+unsafe.Sizeof(record6{})-1)/64 {
				t.Fatalf("shard %d: the IPv6 record at %#x is on more than two lines", i, at)
			}
		}
	}
}

// TestTableMemory computes what a connection of a million takes: its record, and its part of the index.
func TestTableMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("a million connections take a second")
	}
	const conns = 1_000_000
	for _, c := range []struct {
		name string
		v6   bool
		most int
	}{{"IPv4", false, 128 << 20}, {"IPv6", true, 128 << 20}} {
		t.Run(c.name, func(t *testing.T) {
			table := newTable(t, conns)
			for i := range conns {
				conn := tableConn{
					client: stack.AddrFrom4(0xac100000 + uint32(i/50000)), vip: stack.AddrFrom4(0x0a000001), rip: stack.AddrFrom4(0xc0a8010b),
					clientPort: uint16(1024 + i%50000), vipPort: 80, serverPort: 8080, protocol: stack.ProtocolTCP,
				}
				if c.v6 {
					conn.client = stack.AddrFrom16([16]byte{0: 0xfd, 15: byte(i / 50000)})
					conn.vip, conn.rip = stack.AddrFrom16([16]byte{0: 0xfe, 15: 2}), stack.AddrFrom16([16]byte{0: 0xfe, 15: 3})
				}
				if _, _, ok := table.insertConn(&conn); !ok {
					t.Fatalf("connection %d was refused", i)
				}
			}
			bytes := 0
			for i := range table.shard {
				for _, f := range [...]*family{&table.shard[i].v4, &table.shard[i].v6} {
					bytes += len(f.index) * int(unsafe.Sizeof(indexWord(0)))
				}
				bytes += table.shard[i].v4.fresh * int(unsafe.Sizeof(record4{}))
				bytes += table.shard[i].v6.fresh * int(unsafe.Sizeof(record6{}))
			}
			t.Logf("%.1f bytes a connection", float64(bytes)/conns)
			if bytes > c.most {
				t.Errorf("%d connections take %d bytes, want at most %d", conns, bytes, c.most)
			}
		})
	}
}

// TestShardsAreEven spreads connections as they come in practice over the shards, under many seeds. A shard has room for
// 8 standard deviations more than its part, so none may ever be full before the table is.
func TestShardsAreEven(t *testing.T) {
	const conns = 50_000
	for name, client := range map[string]func(i int) (stack.Addr, uint16){
		"few clients with many ports": func(i int) (stack.Addr, uint16) {
			return stack.AddrFrom4(0xac100000 + uint32(i/25000)), uint16(1024 + i%25000)
		},
		"few clients with even ports": func(i int) (stack.Addr, uint16) {
			return stack.AddrFrom4(0xac100000 + uint32(i/12500)), uint16(1024 + 2*(i%12500))
		},
		"many clients with one port": func(i int) (stack.Addr, uint16) { return stack.AddrFrom4(0xac100000 + uint32(i)), 5353 },
		"many IPv6 clients": func(i int) (stack.Addr, uint16) {
			return stack.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}), 5353
		},
		"many IPv6 networks": func(i int) (stack.Addr, uint16) {
			return stack.AddrFrom16([16]byte{0: 0xfd, 5: byte(i >> 16), 6: byte(i >> 8), 7: byte(i), 15: 1}), 5353
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := newTable(t, conns)
			room := len(table.shard[0].v4.slab4)
			random := rand.New(rand.NewPCG(11, 12))
			full := 0
			const seeds = 200
			for range seeds {
				table.seed = [3]uint64{random.Uint64(), random.Uint64(), random.Uint64()}
				var counts [shardCount]int
				for i := range conns {
					addr, port := client(i)
					k := connKey{client: addr, clientPort: port, otherPort: 80, protocol: stack.ProtocolTCP}
					sh, _, _ := table.locate(&k)
					counts[(uintptr(unsafe.Pointer(sh))-uintptr(unsafe.Pointer(&table.shard[0])))/unsafe.Sizeof(*sh)]++
				}
				if slices.Max(counts[:]) > room {
					full++
				}
			}
			if full > 0 {
				t.Errorf("under %d of %d seeds a shard has more than its %d records to hold", full, seeds, room)
			}
		})
	}
}
