package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of a batch. Under load a batch is what arrives while the one before it is written, so that most are far from
// full; the bounds say how long a packet may have to wait for those that were read together with it.
const (
	batchFrames = 64
	batchBytes  = 256 << 10 // a batch ends with the frame that reaches this
)

// pollQueue is a queue that reads and writes by one system call a frame and sleeps in poll(2).
//
// The descriptor does not block, so that Read and Write can use raw system calls, of which the Go scheduler does not
// know: the goroutine keeps its processor through the whole batch. Only the sleep is announced.
type pollQueue struct {
	name   string // what errors call it
	fd     int    // of the device
	wake   int    // an eventfd, readable as soon as Close was called
	closed atomic.Bool
	mu     sync.Mutex // held by Read and Write while they use the descriptors, and by Close to close them
	poll   [2]unix.PollFd
	buffers
	counters
}

// newPollQueue makes a queue of a descriptor that does not block and is attached to a device. The descriptor is the
// queue's unless there is an error.
func newPollQueue(fd int, name string) (*pollQueue, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("%s: make an eventfd: %w", name, err)
	}
	b, err := newBuffers(batchFrames)
	if err != nil {
		unix.Close(wake)
		return nil, fmt.Errorf("%s: get memory for a batch of frames: %w", name, err)
	}
	return &pollQueue{
		name:    name,
		fd:      fd,
		wake:    wake,
		poll:    [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}},
		buffers: b,
	}, nil
}

func (q *pollQueue) Read() ([][]byte, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed.Load() {
			return nil, q.dead("read", os.ErrClosed)
		}
		n, err := q.readBatch()
		if n > 0 {
			return q.batch[:n], nil
		}
		if err != nil {
			return nil, q.dead("read", err)
		}
		if err := q.sleep(); err != nil {
			return nil, q.dead("wait for", err)
		}
	}
}

// readBatch reads frames into q.batch until there are no more or it has tried often enough to fill the batch. An error
// that comes with frames comes again without.
func (q *pollQueue) readBatch() (n int, err error) {
	bytes := 0
reading:
	for tries := 0; tries < len(q.batch) && bytes < batchBytes; tries++ {
		frame := q.buffer(n)
		length, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&frame[0])), MaxFrame)
		switch errno {
		case 0:
			q.batch[n] = frame[:length]
			bytes += int(length)
			n++
		case unix.EINTR:
		case unix.EINVAL:
			q.unreadable.Add(1)
		case unix.EAGAIN:
			break reading
		case unix.EBADFD:
			err = ErrGone
			break reading
		default:
			err = errno
			break reading
		}
	}
	q.framesIn.Add(uint64(n))
	q.bytesIn.Add(uint64(bytes))
	return n, err
}

// sleep waits until there is something to read or the queue is closed.
func (q *pollQueue) sleep() error {
	q.wakeups.Add(1)
	for {
		_, err := unix.Poll(q.poll[:], -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case q.poll[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0:
			return ErrGone
		}
		return nil
	}
}

func (q *pollQueue) Write(frames [][]byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed.Load() {
		return q.dead("write to", os.ErrClosed)
	}
	var written, bytes uint64
	defer func() {
		q.framesOut.Add(written)
		q.bytesOut.Add(bytes)
	}()
	for _, frame := range frames {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(q.fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(frame))), uintptr(len(frame)))
		switch errno {
		case 0:
			written++
			bytes += uint64(len(frame))
		case unix.EIO:
			q.down.Add(1)
		case unix.EINVAL:
			q.invalid.Add(1)
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			q.noRoom.Add(1)
		case unix.EBADFD:
			return q.dead("write to", ErrGone)
		default:
			q.other.Add(1)
		}
	}
	return nil
}

func (q *pollQueue) dead(doing string, err error) error {
	return fmt.Errorf("%s %s: %w", doing, q.name, err)
}

func (q *pollQueue) Stats() QueueStats { return q.stats() }

func (q *pollQueue) Close() error {
	if q.closed.Swap(true) {
		return nil
	}
	one := [8]byte{1}
	_, wakeErr := unix.Write(q.wake, one[:])
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := errors.Join(wakeErr, unix.Close(q.fd), unix.Close(q.wake)); err != nil {
		return fmt.Errorf("close %s: %w", q.name, err)
	}
	return nil
}

// buffers is the memory of a queue's batch: a mapping, which the garbage collector neither scans nor counts, and of
// which only the pages that ever held a packet are real.
type buffers struct {
	memory []byte
	batch  [][]byte // what Read returns; it keeps the mapping
}

// stride is the distance between frames, in bytes. It is not a power of two, so that the headers of a batch do not all
// compete for the same lines of the cache.
const stride = (MaxFrame + 63) &^ 63

func newBuffers(frames int) (buffers, error) {
	memory, err := unix.Mmap(-1, 0, frames*stride, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return buffers{}, err
	}
	b := buffers{memory: memory, batch: make([][]byte, frames)}
	// The reader may still be at work on a batch when the queue is closed. The mapping goes when nobody has the batch.
	runtime.AddCleanup(&b.batch[0], func(memory []byte) { _ = unix.Munmap(memory) }, memory)
	return b, nil
}

// buffer returns the memory of frame i.
func (b *buffers) buffer(i int) []byte {
	return b.memory[i*stride:][:MaxFrame:MaxFrame]
}
