package tuntest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/lvsd/lvsd/tun"
)

// packet returns a frame that passes as an IPv4 packet, with ports that make it of a flow.
func packet(flow byte) []byte {
	frame := make([]byte, tun.HeaderLen+64)
	frame[tun.HeaderLen] = 0x45
	frame[tun.HeaderLen+20] = flow
	return frame
}

func TestKeptFramesAreScribbledOver(t *testing.T) {
	d := NewDevice(1)
	q := d.Queues()[0]
	read := func() [][]byte {
		if !d.Inject(packet(1)) {
			t.Fatal("not taken")
		}
		frames, err := q.Read()
		if err != nil {
			t.Fatal(err)
		}
		return frames
	}
	kept := read()[0]
	own := bytes.Clone(kept)
	q.Close()
	if !bytes.Equal(kept, packet(1)) {
		t.Error("Close ended the loan")
	}
	if _, err := q.Read(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if !bytes.Equal(kept, bytes.Repeat([]byte{Scribble}, len(kept))) {
		t.Errorf("a frame that was kept too long is still good: %x", kept)
	}
	if !bytes.Equal(own, packet(1)) {
		t.Error("a copy was changed")
	}
}

func TestInjectedAndReceivedFramesAreCopies(t *testing.T) {
	d := NewDevice(1)
	q := d.Queues()[0]
	frame := packet(1)
	d.Inject(frame)
	clear(frame)
	frames, err := q.Read()
	if err != nil || !bytes.Equal(frames[0], packet(1)) {
		t.Fatalf("%x, %v", frames, err)
	}
	if err := q.Write(frames); err != nil {
		t.Fatal(err)
	}
	clear(frames[0])
	got, err := d.Receive(t.Context())
	if err != nil || !bytes.Equal(got, packet(1)) {
		t.Fatalf("%x, %v", got, err)
	}
}

func TestEverythingIsBounded(t *testing.T) {
	d := NewDevice(2)
	taken := 0
	for d.InjectTo(1, packet(1)) {
		taken++
	}
	if taken != Backlog {
		t.Errorf("a queue took %d frames", taken)
	}
	if !d.InjectTo(0, packet(1)) {
		t.Error("the other queue took none")
	}
	q := d.Queues()[0]
	for range Backlog + 3 {
		if err := q.Write([][]byte{packet(1)}); err != nil {
			t.Fatal(err)
		}
	}
	if got := q.Stats(); got.FramesOut != Backlog || got.Refused != (tun.Refused{NoRoom: 3}) {
		t.Errorf("counted %+v", got)
	}
}

func TestReceiveEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewDevice(1).Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestFlowsStayOnTheirQueues(t *testing.T) {
	d := NewDevice(4)
	used := 0
	for flow := range byte(32) {
		for range 2 {
			if !d.Inject(packet(flow)) {
				t.Fatal("not taken")
			}
		}
	}
	for i, q := range d.queues {
		if len(q.in) > 0 {
			used++
		}
		if len(q.in)%2 != 0 {
			t.Errorf("queue %d got one packet of a flow and not the other", i)
		}
	}
	if used < 2 {
		t.Error("all flows went to one queue")
	}
	for _, q := range d.Queues() {
		q.Close()
	}
	if d.Inject(packet(1)) {
		t.Error("a device without queues took a frame")
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	d := NewDevice(2)
	var workers sync.WaitGroup
	for _, q := range d.Queues() {
		workers.Go(func() {
			for {
				frames, err := q.Read()
				if err != nil {
					return
				}
				if q.Write(frames) != nil {
					return
				}
			}
		})
	}
	for i := range 500 {
		d.SetUp(true)
		if !d.Inject(packet(byte(i))) {
			t.Fatal("not taken")
		}
		if _, err := d.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = d.Queues()[0].Stats()
	}
	d.SetUp(false)
	d.Delete()
	d.Close()
	workers.Wait()
}
