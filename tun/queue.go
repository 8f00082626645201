package tun

import (
	"errors"
	"sync/atomic"
)

const (
	// HeaderLen is the length of the virtio_net_hdr in front of the packet in every frame, in bytes.
	HeaderLen = 10
	// MaxFrame is the length of the longest frame: a header and an IP packet of 65535 bytes.
	MaxFrame = HeaderLen + 65535
)

// ErrGone is the error of a queue whose device was deleted under it. All that is left to do is to close the device; a
// new one can be opened under the same name.
var ErrGone = errors.New("the tun device was deleted")

// Queue is one of the queues of a device. It moves frames and knows nothing of what is in them. Read and Write are for
// one goroutine; Stats and Close may be called by others at any time.
type Queue interface {
	// Read waits for at least one frame and returns a batch of what is there. Batch and frames belong to the queue and
	// are lent until the next Read: the caller may use the batch as a scratch and change the frames within their
	// capacity of MaxFrame bytes. Close does not end the loan, but the memory goes with the queue and the batch: a frame
	// alone does not keep it.
	//
	// An error means that the queue is dead: os.ErrClosed after Close, ErrGone after the device was deleted.
	Read() ([][]byte, error)

	// Write hands frames to the device, which are the caller's again when it returns. They may be frames of the last
	// Read or any others. A frame that the device refuses is counted and the rest is written all the same; an error
	// means that the queue is dead, as for Read.
	Write(frames [][]byte) error

	// Stats returns what the queue has counted since it was opened. It is cheap, but a snapshot of single counters.
	Stats() QueueStats

	// Close wakes a Read that waits, waits for a Write to end, and detaches the queue from its device, which spreads
	// the queue's flows over those that are left. Closing again does nothing.
	Close() error
}

// QueueStats counts frames, their bytes (with headers), and what went wrong with them.
type QueueStats struct {
	FramesIn, BytesIn   uint64 // read from the device
	FramesOut, BytesOut uint64 // written to the device and taken by it
	Wakeups             uint64 // how often Read found nothing and had to sleep
	Unreadable          uint64 // packets that the kernel lost because no virtio_net_hdr can describe them (EINVAL)
	Refused             Refused
}

// Refused counts frames that the device did not take, by the reason.
type Refused struct {
	Down    uint64 // the device is down (EIO)
	Invalid uint64 // no IP packet, or a virtio_net_hdr that does not fit it (EINVAL)
	NoRoom  uint64 // the kernel has no memory for it now (EAGAIN, ENOBUFS, ENOMEM)
	Other   uint64 // any other error
}

// Total is the number of all refused frames.
func (r Refused) Total() uint64 { return r.Down + r.Invalid + r.NoRoom + r.Other }

// counters are QueueStats while they are being counted: by one goroutine, once a batch, for others to read.
type counters struct {
	framesIn, bytesIn, framesOut, bytesOut, wakeups, unreadable atomic.Uint64

	down, invalid, noRoom, other atomic.Uint64
}

func (c *counters) stats() QueueStats {
	return QueueStats{
		FramesIn:   c.framesIn.Load(),
		BytesIn:    c.bytesIn.Load(),
		FramesOut:  c.framesOut.Load(),
		BytesOut:   c.bytesOut.Load(),
		Wakeups:    c.wakeups.Load(),
		Unreadable: c.unreadable.Load(),
		Refused: Refused{
			Down:    c.down.Load(),
			Invalid: c.invalid.Load(),
			NoRoom:  c.noRoom.Load(),
			Other:   c.other.Load(),
		},
	}
}
