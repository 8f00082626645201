package balancer

import (
	"sync"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// Queue is where a worker's frames come from and go to: a tun queue, or a test.
type Queue interface {
	// Read waits for at least one frame. The frames are the worker's until the next Read, with their capacity.
	Read() ([][]byte, error)
	// Write sends frames, which are the worker's again when it returns.
	Write([][]byte) error
}

// Serve forwards what comes from a queue until the queue fails, and returns its error. clock tells the time since any
// fixed moment, the same for all queues. Serve may be called for many queues at once.
func (d *Director) Serve(q Queue, clock func() time.Duration) error {
	w := d.NewWorker()
	defer w.Close()
	for {
		frames, err := q.Read()
		if err != nil {
			return err
		}
		if err := q.Write(w.Forward(frames, clock())); err != nil {
			return err
		}
	}
}

// Worker takes packets through a director, one batch at a time. A worker is for one goroutine; a director may have many.
type Worker struct {
	director *Director

	// mu is held through each batch. Those who read the counters take it, and those who replaced a snapshot, to know
	// that nobody uses the old one any more.
	mu       sync.Mutex
	counters counters

	now      time.Duration
	tick     tick
	snapshot *snapshot
	packet   stack.Packet
	out      [][]byte
}

// NewWorker returns a worker, which counts as the director's until it is closed.
func (d *Director) NewWorker() *Worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := &Worker{director: d}
	w.counters.growTo(len(d.snapshot.Load().servers))
	d.workers = append(d.workers, w)
	return w
}

// Close takes the worker from the director, which keeps what it has counted. Closing again does nothing.
func (w *Worker) Close() { w.director.retire(w) }

// Forward takes a batch of frames through the director at the time now and returns the frames to be sent. It changes
// frames in place. What it returns is valid until the next call and may be fewer or, when fragments were waiting, more
// frames than it was given.
func (w *Worker) Forward(frames [][]byte, now time.Duration) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now, w.tick = now, ticksOf(now)
	w.snapshot = w.director.snapshot.Load()
	clear(w.out)
	w.out = w.out[:0]
	for _, frame := range frames {
		w.counters.framesIn++
		w.counters.bytesIn += uint64(len(frame))
		w.forward(frame)
	}
	return w.out
}

// server returns the server with a number that a record holds. The record may be younger than the worker's snapshot.
func (w *Worker) server(number uint32) *server {
	if int(number) < len(w.snapshot.servers) {
		if srv := w.snapshot.servers[number]; srv != nil {
			return srv
		}
	}
	w.snapshot = w.director.snapshot.Load()
	w.counters.growTo(len(w.snapshot.servers))
	return w.snapshot.servers[number]
}

func (w *Worker) emit(frame []byte) {
	w.counters.framesOut++
	w.counters.bytesOut += uint64(len(frame))
	w.out = append(w.out, frame)
}

func (w *Worker) drop(reason DropReason) { w.counters.drops[reason]++ }
