package stack_test

import (
	"slices"
	"testing"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// benchmarkFrames are what passes a director most often.
func benchmarkFrames(f family) map[string][]byte {
	ack := segment(stack.FlagACK)
	return map[string][]byte{
		"TCP full":         f.request().TCP(ack, text(32)),
		"TCP partial":      packettest.Partial(f.request().TCP(ack, text(32))),
		"TCP super-packet": packettest.Super(f.request().TCP(ack, text(60000)), 1448),
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, f := range families {
		for name, frame := range benchmarkFrames(f) {
			b.Run(f.name+" "+name, func(b *testing.B) {
				p := new(stack.Packet)
				b.ReportAllocs()
				for b.Loop() {
					if p.Decode(frame) != stack.NoProblem {
						b.Fatal("not sound")
					}
				}
			})
		}
	}
}

// BenchmarkTranslate is all that package stack does with a request of a known connection.
func BenchmarkTranslate(b *testing.B) {
	for _, f := range families {
		for name, template := range benchmarkFrames(f) {
			b.Run(f.name+" "+name, func(b *testing.B) {
				frame, p := slices.Clone(template), new(stack.Packet)
				ends := [2]stack.Addr{addr(f.rip), addr(f.vip)} // in turn, so that there is always something to change
				turn := 0
				b.ReportAllocs()
				for b.Loop() {
					if p.Decode(frame) != stack.NoProblem {
						b.Fatal("not sound")
					}
					p.SetDestination(ends[turn], uint16(8080+turn))
					p.RestoreTTL()
					turn ^= 1
				}
			})
		}
	}
}

// BenchmarkReply is the price of a refused connection, with the copy that puts the request back.
func BenchmarkReply(b *testing.B) {
	for _, f := range families {
		b.Run(f.name+" reset", func(b *testing.B) {
			request := f.request().TCP(segment(stack.FlagSYN), nil)
			buffer, p := make([]byte, stack.MinFrameCap), new(stack.Packet)
			b.ReportAllocs()
			for b.Loop() {
				p.Decode(buffer[:copy(buffer, request)])
				p.ReplyReset()
			}
		})
	}
}
