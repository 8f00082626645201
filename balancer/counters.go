package balancer

// Traffic is what IPVS counts for a service or server (ipvs.md section 8): connections scheduled, and packets and bytes
// of whole IP packets. In is from the client, out from the server. A super-packet counts as one packet.
type Traffic struct {
	Conns      uint64 `json:"conns"`
	InPackets  uint64 `json:"in_packets"`
	InBytes    uint64 `json:"in_bytes"`
	OutPackets uint64 `json:"out_packets"`
	OutBytes   uint64 `json:"out_bytes"`
}

func (t *Traffic) add(o *Traffic) {
	t.Conns += o.Conns
	t.InPackets += o.InPackets
	t.InBytes += o.InBytes
	t.OutPackets += o.OutPackets
	t.OutBytes += o.OutBytes
}

// counters are a worker's own, guarded by its mutex: the packet path adds without atomics, readers add up workers.
type counters struct {
	traffic   []Traffic // by number of the server
	framesIn  uint64
	bytesIn   uint64
	framesOut uint64
	bytesOut  uint64
	passed    uint64 // frames sent on unchanged, being none of ours
	drops     [numDropReasons]uint64
	answers   [numActions]uint64
}

// growTo makes room for servers with numbers below n.
func (c *counters) growTo(n int) {
	if n > len(c.traffic) {
		c.traffic = append(c.traffic, make([]Traffic, n-len(c.traffic))...)
	}
}

// add adds what o has counted.
func (c *counters) add(o *counters) {
	c.growTo(len(o.traffic))
	for i := range o.traffic {
		c.traffic[i].add(&o.traffic[i])
	}
	c.framesIn += o.framesIn
	c.bytesIn += o.bytesIn
	c.framesOut += o.framesOut
	c.bytesOut += o.bytesOut
	c.passed += o.passed
	for i, n := range o.drops {
		c.drops[i] += n
	}
	for i, n := range o.answers {
		c.answers[i] += n
	}
}
