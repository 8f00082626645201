package stack

// What tests in stack_test see of the inside.

const (
	FragmentLifetime  = fragmentLifetime
	MaxDatagrams      = maxDatagrams
	MaxHeldBytes      = maxHeldBytes
	MaxFragmentRanges = maxFragmentRanges
	MaxExtensions     = maxExtensions
	AddressBurst      = addressBurst
)

// Offsets returns where in the frame Decode found the transport header, the quoted packet and its transport header.
func (p *Packet) Offsets() (transport, quote, quoteTransport int) {
	return p.transport, p.quote, p.quoteTransport
}

// Partial tells whether the transport checksum is partial.
func (p *Packet) Partial() bool { return p.partial }

// Held returns how many datagrams are remembered, how many frames wait, and how many bytes of frames are accounted for
// and really there.
func (f *Fragments[T]) Held() (datagrams, frames, accounted, bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for e := f.oldest.Front(); e != nil; e = e.Next() {
		d := e.Value.(*datagram[T])
		frames += len(d.held)
		for _, frame := range d.held {
			bytes += len(frame)
		}
	}
	if f.oldest.Len() != len(f.datagrams) {
		return -1, frames, f.heldBytes, bytes
	}
	return len(f.datagrams), frames, f.heldBytes, bytes
}
