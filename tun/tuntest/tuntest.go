// Package tuntest is a tun device in memory, for tests of what reads and writes frames.
//
// A [Device] has the queues of a tun.Device at one end, which treat frames as the kernel does: they refuse what the
// kernel refuses, and they lend frames until the next Read only. To find out who keeps one longer, the bytes of a
// batch are overwritten with [Scribble] at the next Read. The test is at the other end, in the place of the kernel's
// network stack: it injects frames, receives those that were written, and sets the device down or deletes it.
package tuntest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"sync"

	"github.com/lvsd/lvsd/tun"
)

const (
	// Scribble is what the bytes of a batch are overwritten with when it is not lent any more.
	Scribble = 0xdb

	// Backlog is how many frames may wait at most to be read from a queue, and to be received by the test.
	Backlog = 512

	batchFrames = 64
)

var scribbles = bytes.Repeat([]byte{Scribble}, tun.MaxFrame)

// Device is a tun device in memory. Its methods may be called by several goroutines.
type Device struct {
	queues []*queue
	out    chan []byte

	mu    sync.Mutex
	state state
	gone  chan struct{} // closed when the device is deleted
}

type state int

const (
	up state = iota
	down
	gone
)

// NewDevice returns a device that is up.
func NewDevice(queues int) *Device {
	d := &Device{out: make(chan []byte, Backlog), gone: make(chan struct{})}
	for i := range queues {
		d.queues = append(d.queues, newQueue(d, i))
	}
	return d
}

// Queues returns the device's queues, each for a goroutine of its own.
func (d *Device) Queues() []tun.Queue {
	queues := make([]tun.Queue, len(d.queues))
	for i, q := range d.queues {
		queues[i] = q
	}
	return queues
}

// Close closes all queues.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// SetUp sets the device up or down, which is without effect once it is deleted. What waits to be read stays.
func (d *Device) SetUp(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.state == gone:
	case on:
		d.state = up
	default:
		d.state = down
	}
}

// Delete deletes the device under its queues, as `ip link del` does.
func (d *Device) Delete() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != gone {
		d.state = gone
		close(d.gone)
	}
}

func (d *Device) stateNow() state {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

// Inject gives a copy of a frame to the queue that its flow belongs to, as the kernel spreads flows, and tells whether
// the queue took it: a device that is down drops it, and so does a queue that is full.
func (d *Device) Inject(frame []byte) bool {
	open := make([]int, 0, len(d.queues))
	for i, q := range d.queues {
		if !q.isClosed() {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return false
	}
	return d.InjectTo(open[flowHash(frame)%uint32(len(open))], frame)
}

// InjectTo gives a copy of a frame to one of the queues.
func (d *Device) InjectTo(queue int, frame []byte) bool {
	if len(frame) < tun.HeaderLen || len(frame) > tun.MaxFrame {
		panic(fmt.Sprintf("tuntest: inject a frame of %d bytes", len(frame)))
	}
	q := d.queues[queue]
	if d.stateNow() != up || q.isClosed() {
		return false
	}
	select {
	case q.in <- append([]byte(nil), frame...):
		return true
	default:
		return false
	}
}

// Receive waits for the next frame that was written to any of the queues. The frame is the caller's.
func (d *Device) Receive(ctx context.Context) ([]byte, error) {
	select {
	case frame := <-d.out:
		return frame, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("receive a frame: %w", context.Cause(ctx))
	}
}

// flowHash is the same for all packets of a flow in one direction.
func flowHash(frame []byte) uint32 {
	h := fnv.New32a()
	packet := frame[tun.HeaderLen:]
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		h.Write(packet[12:20])
		if first := binary.BigEndian.Uint16(packet[6:])&0x3fff == 0; first && len(packet) >= 24 {
			h.Write(packet[20:24]) // ports; the fragments of a datagram have none to go by
		}
	case len(packet) >= 44 && packet[0]>>4 == 6:
		h.Write(packet[8:44])
	}
	return h.Sum32()
}

// queue implements tun.Queue.
type queue struct {
	device *Device
	name   string
	in     chan []byte
	closed chan struct{}

	busy sync.Mutex // held by Write, for Close to wait for it

	buffers [batchFrames][]byte // as long as what they hold, and MaxFrame in capacity
	lent    int                 // how many of them are
	batch   [][]byte            // what Read returns

	mu    sync.Mutex
	stats tun.QueueStats
}

func newQueue(d *Device, i int) *queue {
	q := &queue{
		device: d,
		name:   fmt.Sprintf("queue %d in memory", i),
		in:     make(chan []byte, Backlog),
		closed: make(chan struct{}),
	}
	for i := range q.buffers {
		q.buffers[i] = make([]byte, 0, tun.MaxFrame)
	}
	return q
}

func (q *queue) isClosed() bool {
	select {
	case <-q.closed:
		return true
	default:
		return false
	}
}

// check returns the error of a queue that is dead.
func (q *queue) check(doing string) error {
	switch {
	case q.isClosed():
		return fmt.Errorf("%s %s: %w", doing, q.name, os.ErrClosed)
	case q.device.stateNow() == gone:
		return fmt.Errorf("%s %s: %w", doing, q.name, tun.ErrGone)
	}
	return nil
}

func (q *queue) Read() ([][]byte, error) {
	for _, frame := range q.buffers[:q.lent] {
		copy(frame, scribbles)
	}
	q.lent = 0
	if err := q.check("read"); err != nil {
		return nil, err
	}
	select {
	case frame := <-q.in:
		q.lend(frame)
	default:
		q.count(func(s *tun.QueueStats) { s.Wakeups++ })
		select {
		case frame := <-q.in:
			q.lend(frame)
		case <-q.closed:
		case <-q.device.gone:
		}
	}
	if err := q.check("read"); err != nil {
		return nil, err
	}
	for q.lent < batchFrames {
		select {
		case frame := <-q.in:
			q.lend(frame)
			continue
		default:
		}
		break
	}
	q.batch = append(q.batch[:0], q.buffers[:q.lent]...)
	return q.batch, nil
}

// lend copies a frame into the batch.
func (q *queue) lend(frame []byte) {
	q.buffers[q.lent] = append(q.buffers[q.lent][:0], frame...)
	q.lent++
	q.count(func(s *tun.QueueStats) {
		s.FramesIn++
		s.BytesIn += uint64(len(frame))
	})
}

func (q *queue) Write(frames [][]byte) error {
	q.busy.Lock()
	defer q.busy.Unlock()
	for _, frame := range frames {
		if err := q.check("write to"); err != nil {
			return err
		}
		q.write(frame)
	}
	return q.check("write to")
}

func (q *queue) write(frame []byte) {
	isDown := q.device.stateNow() == down
	valid := acceptable(frame)
	q.count(func(s *tun.QueueStats) {
		switch {
		case !valid:
			s.Refused.Invalid++
		case isDown:
			s.Refused.Down++
		default:
			select {
			case q.device.out <- append([]byte(nil), frame...):
				s.FramesOut++
				s.BytesOut += uint64(len(frame))
			default:
				s.Refused.NoRoom++
			}
		}
	})
}

func (q *queue) count(f func(*tun.QueueStats)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(&q.stats)
}

func (q *queue) Stats() tun.QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stats
}

func (q *queue) Close() error {
	q.mu.Lock()
	if !q.isClosed() {
		close(q.closed)
	}
	q.mu.Unlock()
	q.busy.Lock() // until a Write is over
	defer q.busy.Unlock()
	return nil
}
