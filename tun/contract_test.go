package tun_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/lvsd/lvsd/tun"
	"github.com/lvsd/lvsd/tun/tuntest"
)

// endpoints are both ends of a device that is up: its queues, and what stands in the place of the network stack.
type endpoints struct {
	queues []tun.Queue
	inject func(frame []byte) bool
	// receive waits for a frame that was written. What it returns of the header is no more than kind and size of the
	// segments.
	receive func() []byte
	setUp   func(bool)
	delete  func()
}

func TestQueueContract(t *testing.T) {
	t.Run("poll", func(t *testing.T) { testQueueContract(t, openReal) })
	t.Run("memory", func(t *testing.T) { testQueueContract(t, openMemory) })
}

func openMemory(t *testing.T, queues int) endpoints {
	d := tuntest.NewDevice(queues)
	t.Cleanup(func() { d.Close() })
	return endpoints{
		queues: d.Queues(),
		inject: d.Inject,
		receive: func() []byte {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			frame, err := d.Receive(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return frame
		},
		setUp:  d.SetUp,
		delete: d.Delete,
	}
}

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// udp returns a frame with a UDP packet over IPv4 that carries a number. Each port is a flow.
func udp(port uint16, number uint32, size int) []byte {
	frame := make([]byte, tun.HeaderLen+20+8+size)
	ip := frame[tun.HeaderLen:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(20+8+size))
	ip[8], ip[9] = 64, 17
	copy(ip[12:], []byte{10, 0, 0, 2, 10, 0, 0, 1})
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
	binary.BigEndian.PutUint16(ip[20:], port)
	binary.BigEndian.PutUint16(ip[22:], 9)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+size))
	for i := 28; i+4 <= len(ip); i += 4 {
		binary.BigEndian.PutUint32(ip[i:], number)
	}
	return frame
}

// describe writes a virtio_net_hdr into a frame.
func describe(frame []byte, flags, kind uint8, headers, segment, start, offset uint16) []byte {
	frame[0], frame[1] = flags, kind
	for i, x := range []uint16{headers, segment, start, offset} {
		binary.NativeEndian.PutUint16(frame[2+2*i:], x)
	}
	return frame
}

// number returns what udp was given.
func number(frame []byte) uint32 { return binary.BigEndian.Uint32(frame[tun.HeaderLen+28:]) }

// echo writes what it reads until the queue is dead.
func echo(q tun.Queue) {
	for {
		frames, err := q.Read()
		if err != nil {
			return
		}
		if q.Write(frames) != nil {
			return
		}
	}
}

// refusals are frames that the kernel does not take.
var refusals = map[string][]byte{
	"nothing":                      {},
	"half a header":                make([]byte, 5),
	"a header only":                make([]byte, tun.HeaderLen),
	"no IP":                        append(make([]byte, tun.HeaderLen), 0x55, 0, 0, 0),
	"zeros":                        make([]byte, 200),
	"headers longer than packet":   describe(udp(1, 0, 100), 0, 0, 200, 0, 0, 0),
	"checksum behind the packet":   describe(udp(1, 0, 100), 1, 0, 28, 0, 20, 200),
	"checksum starts in IP header": describe(udp(1, 0, 100), 1, 0, 28, 0, 4, 6),
	"segments of size 0":           describe(udp(1, 0, 9000), 1, 5, 28, 0, 20, 6),
	"unknown kind of segments":     describe(udp(1, 0, 9000), 1, 7, 28, 1000, 20, 6),
	"ECN bit alone":                describe(udp(1, 0, 9000), 1, 0x80, 28, 1000, 20, 6),
	"TCPv6 segments of IPv4":       describe(udp(1, 0, 9000), 1, 4, 40, 1000, 20, 16),
	"USO without partial checksum": describe(udp(1, 0, 9000), 0, 5, 28, 1000, 0, 0),
	"USO in too many segments":     describe(udp(1, 0, 9000), 1, 5, 28, 10, 20, 6),
}

// testQueueContract is what every tun.Queue has to fulfil.
func testQueueContract(t *testing.T, open func(t *testing.T, queues int) endpoints) {
	mustRead := func(t *testing.T, q tun.Queue) [][]byte {
		t.Helper()
		frames, err := q.Read()
		if err != nil || len(frames) == 0 {
			t.Fatalf("Read returned %d frames and the error %v", len(frames), err)
		}
		return frames
	}
	mustInject := func(t *testing.T, e endpoints, frame []byte) {
		t.Helper()
		if !e.inject(frame) {
			t.Fatal("a frame was not taken")
		}
	}
	mustWrite := func(t *testing.T, q tun.Queue, frames ...[]byte) {
		t.Helper()
		if err := q.Write(frames); err != nil {
			t.Fatal(err)
		}
	}
	// reading calls Read in a goroutine and returns when there was nothing to read.
	reading := func(t *testing.T, q tun.Queue) <-chan error {
		before := q.Stats().Wakeups
		done := make(chan error, 1)
		go func() {
			_, err := q.Read()
			done <- err
		}()
		eventually(t, "Read finds nothing", func() bool { return q.Stats().Wakeups > before })
		return done
	}
	ended := func(t *testing.T, done <-chan error) error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			t.Fatal("Read does not return")
			return nil
		}
	}

	t.Run("frames are read whole and in order", func(t *testing.T) {
		e := open(t, 1)
		sizes := []int{4, 100, 1472, 9000, 65535 - 28}
		for i, size := range sizes {
			mustInject(t, e, udp(7, uint32(i), size))
		}
		for i := 0; i < len(sizes); {
			for _, frame := range mustRead(t, e.queues[0]) {
				if want := udp(7, uint32(i), sizes[i]); !bytes.Equal(frame, want) {
					t.Fatalf("frame %d has %d bytes %x..., want %d %x...", i, len(frame), frame[:60], len(want), want[:60])
				}
				if cap(frame) != tun.MaxFrame {
					t.Fatalf("frame %d has a capacity of %d", i, cap(frame))
				}
				i++
			}
		}
	})

	t.Run("a batch is bounded and the rest comes later", func(t *testing.T) {
		e := open(t, 1)
		const frames = 300
		for i := range frames {
			mustInject(t, e, udp(7, uint32(i), 100))
		}
		for i := uint32(0); i < frames; {
			batch := mustRead(t, e.queues[0])
			if len(batch) > 64 {
				t.Fatalf("a batch of %d", len(batch))
			}
			for _, frame := range batch {
				if number(frame) != i {
					t.Fatalf("frame %d came when %d was next", number(frame), i)
				}
				i++
			}
		}
	})

	t.Run("a super-packet passes in one piece", func(t *testing.T) {
		e := open(t, 1)
		super := describe(udp(7, 1, 60000), 1, 5, 28, 1000, 20, 6)
		mustInject(t, e, super)
		frames := mustRead(t, e.queues[0])
		if len(frames) != 1 || !bytes.Equal(frames[0][tun.HeaderLen:], super[tun.HeaderLen:]) || frames[0][1] != 5 ||
			binary.NativeEndian.Uint16(frames[0][4:]) != 1000 {
			t.Fatalf("%d frames, the first %x... of %d bytes", len(frames), frames[0][:40], len(frames[0]))
		}
		mustWrite(t, e.queues[0], frames...)
		if got := e.receive(); !bytes.Equal(got[tun.HeaderLen:], super[tun.HeaderLen:]) || got[1] != 5 {
			t.Fatalf("came out as %x... of %d bytes", got[:40], len(got))
		}
	})

	t.Run("lent frames can be changed, grown, mixed with others and written", func(t *testing.T) {
		e := open(t, 1)
		q := e.queues[0]
		for round := range uint32(3) {
			mustInject(t, e, udp(7, round, 100))
			mustInject(t, e, udp(7, round, 100))
			var lent [][]byte
			for len(lent) < 2 {
				frames := mustRead(t, q)
				if lent = append(lent[:0], frames...); len(lent) < 2 {
					mustInject(t, e, udp(7, round, 100)) // the one before this was alone in its batch
				}
			}
			grown := append(lent[1], make([]byte, 9000)...)
			if &grown[0] != &lent[1][0] {
				t.Fatal("growing a frame moved it")
			}
			changed := append(grown[:0], udp(8, 100+round, 9000)...)
			own := udp(9, 200+round, 500)
			mustWrite(t, q, changed, own, lent[0])
			for _, want := range [][]byte{changed, own, lent[0]} {
				if got := e.receive(); !bytes.Equal(got[tun.HeaderLen:], want[tun.HeaderLen:]) {
					t.Fatalf("%x... came out, want %x...", got[:60], want[:60])
				}
			}
			lent[0], lent[1] = lent[1], lent[0] // the batch may be used as a scratch
		}
	})

	t.Run("a refused frame is counted and the next is written", func(t *testing.T) {
		for name, refused := range refusals {
			t.Run(name, func(t *testing.T) {
				e := open(t, 1)
				q := e.queues[0]
				good := udp(7, 1, 100)
				mustWrite(t, q, refused, good, refused)
				if got := e.receive(); !bytes.Equal(got[tun.HeaderLen:], good[tun.HeaderLen:]) {
					t.Errorf("%x came out", got)
				}
				want := tun.QueueStats{FramesOut: 1, BytesOut: uint64(len(good)), Refused: tun.Refused{Invalid: 2}}
				if got := q.Stats(); got != want {
					t.Errorf("counted %+v, want %+v", got, want)
				}
			})
		}
	})

	t.Run("what is counted", func(t *testing.T) {
		e := open(t, 1)
		q := e.queues[0]
		done := reading(t, q)
		mustInject(t, e, udp(7, 1, 100))
		if err := ended(t, done); err != nil {
			t.Fatal(err)
		}
		mustInject(t, e, udp(7, 2, 200))
		mustRead(t, q)
		mustWrite(t, q, udp(7, 3, 300), udp(7, 3, 400), udp(7, 3, 500))
		want := tun.QueueStats{
			FramesIn: 2, BytesIn: 2*38 + 300, FramesOut: 3, BytesOut: 3*38 + 1200, Wakeups: 1,
		}
		if got := q.Stats(); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	})

	t.Run("down and up again", func(t *testing.T) {
		e := open(t, 1)
		q := e.queues[0]
		done := reading(t, q)
		e.setUp(false)
		if e.inject(udp(7, 1, 100)) {
			t.Error("a device that is down took a frame")
		}
		select {
		case err := <-done:
			t.Fatalf("Read ended: %v", err)
		default:
		}
		e.setUp(true)
		mustInject(t, e, udp(7, 2, 100))
		if err := ended(t, done); err != nil {
			t.Fatal(err)
		}

		e.setUp(false)
		mustWrite(t, q, udp(7, 3, 100), udp(7, 4, 100), make([]byte, 100))
		if got, want := q.Stats().Refused, (tun.Refused{Down: 2, Invalid: 1}); got != want {
			t.Errorf("refused %+v, want %+v", got, want)
		}
		e.setUp(true)
		mustWrite(t, q, udp(7, 5, 100))
		if got := number(e.receive()); got != 5 {
			t.Errorf("frame %d came out", got)
		}
	})

	t.Run("deleted", func(t *testing.T) {
		e := open(t, 2)
		done := reading(t, e.queues[0])
		e.delete()
		if err := ended(t, done); !errors.Is(err, tun.ErrGone) {
			t.Errorf("Read that waited: %v", err)
		}
		for i, q := range e.queues {
			if _, err := q.Read(); !errors.Is(err, tun.ErrGone) {
				t.Errorf("queue %d, Read: %v", i, err)
			}
			if err := q.Write([][]byte{udp(7, 1, 100)}); !errors.Is(err, tun.ErrGone) {
				t.Errorf("queue %d, Write: %v", i, err)
			}
			if err := q.Close(); err != nil {
				t.Errorf("queue %d, Close: %v", i, err)
			}
			if _, err := q.Read(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("queue %d, Read after Close: %v", i, err)
			}
		}
	})

	t.Run("Close wakes Read and may be repeated", func(t *testing.T) {
		e := open(t, 1)
		q := e.queues[0]
		done := reading(t, q)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := q.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		if err := ended(t, done); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read: %v", err)
		}
		wg.Wait()
		if _, err := q.Read(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read: %v", err)
		}
		if err := q.Write([][]byte{udp(7, 1, 100)}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write: %v", err)
		}
	})

	t.Run("Close leaves lent frames alone", func(t *testing.T) {
		e := open(t, 1)
		q := e.queues[0]
		want := udp(7, 1, 1000)
		mustInject(t, e, want)
		frames := mustRead(t, q)
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		if !bytes.Equal(frames[0], want) {
			t.Errorf("a lent frame became %x...", frames[0][:60])
		}
	})

	t.Run("flows of a closed queue move to the others", func(t *testing.T) {
		e := open(t, 4)
		for _, q := range e.queues {
			go echo(q)
		}
		const flows = 64
		pass := func() {
			for port := range uint16(flows) {
				mustInject(t, e, udp(port, uint32(port), 100))
				if got := number(e.receive()); got != uint32(port) {
					t.Fatalf("frame %d came out when %d was next", got, port)
				}
			}
		}
		read := func() (total uint64, most int) {
			for i, q := range e.queues {
				n := q.Stats().FramesIn
				total += n
				if n > e.queues[most].Stats().FramesIn {
					most = i
				}
			}
			return total, most
		}
		pass()
		total, most := read()
		if n := e.queues[most].Stats().FramesIn; total != flows || n == flows {
			t.Fatalf("%d of %d frames came by one queue, %d in all", n, flows, total)
		}
		if err := e.queues[most].Close(); err != nil {
			t.Fatal(err)
		}
		pass()
		if total, _ := read(); total != 2*flows {
			t.Errorf("%d frames in all, want %d", total, 2*flows)
		}
	})

	t.Run("an honest worker under load", func(t *testing.T) {
		e := open(t, 1)
		q := e.queues[0]
		const frames = 2000
		go echo(q)
		random := rand.New(rand.NewPCG(1, 2))
		for i := range uint32(frames) {
			frame := udp(uint16(i), i, 4+random.IntN(3000))
			mustInject(t, e, frame)
			if got := e.receive(); !bytes.Equal(got[tun.HeaderLen:], frame[tun.HeaderLen:]) {
				t.Fatalf("frame %d came out as %x...", i, got[:60])
			}
		}
	})
}
