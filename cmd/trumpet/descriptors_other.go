//go:build !unix

package main

import "math"

// openFilesLimit is more than this process can need: there is no such limit here.
func openFilesLimit() uint64 { return math.MaxUint32 }
