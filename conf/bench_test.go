package conf

import (
	"fmt"
	"strings"
	"testing"
)

// largeFile has so many services with 10 servers each.
func largeFile(services int, weight string) []byte {
	var b strings.Builder
	for i := range services {
		fmt.Fprintf(&b, "[[service]]\naddress = \"10.%d.%d.1:80\"\nscheduler = \"wrr\"\n", i>>8, i&0xff)
		for j := range 10 {
			fmt.Fprintf(&b, "[[service.server]]\naddress = \"192.168.0.%d:8080\"\nweight = %s\n", j+1, weight)
		}
	}
	return []byte(b.String())
}

func BenchmarkParse(b *testing.B) {
	data := largeFile(10000, "2")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		cfg, err := Parse("f", data, Options{})
		if err != nil || len(cfg.Spec.Services) != 10000 {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseErrors is about a file that is wrong in 100,000 places.
func BenchmarkParseErrors(b *testing.B) {
	data := largeFile(10000, "-1")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("f", data, Options{}); err == nil || strings.Count(err.Error(), "\n") != 100000-1 {
			b.Fatal("not 100,000 errors")
		}
	}
}

func BenchmarkExpandEnv(b *testing.B) {
	data := largeFile(10000, "${WEIGHT}")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("f", data, Options{ExpandEnv: func(string) (string, bool) { return "2", true }}); err != nil {
			b.Fatal(err)
		}
	}
}
