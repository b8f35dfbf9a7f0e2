package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// collectPercent is by how much the heap grows before it is collected: with many clients what they hold is most of a
	// worker's memory, and it hardly changes. Go's default lets as much garbage gather beside it, which would be a third
	// of what an idle client takes.
	collectPercent = 50
	// collectBytes is how much it may grow in any case. A small heap would be collected again and again
	// while events pass through: that was a quarter of a worker's processor time.
	collectBytes = 32 << 20
)

// tuneCollector has the heap collected when it has grown by collectPercent or collectBytes, whichever is more. It
// looks again after each collection, by an object that each one frees.
func tuneCollector() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	percent := uint64(collectPercent)
	if sample[0].Value.Kind() == metrics.KindUint64 {
		percent = max(percent, 100*collectBytes/max(sample[0].Value.Uint64(), 1<<20))
	}
	debug.SetGCPercent(int(percent))
	type sentinel struct{ _ *byte } // with a pointer, so that it is not put together with others
	runtime.SetFinalizer(&sentinel{}, func(*sentinel) { tuneCollector() })
}
