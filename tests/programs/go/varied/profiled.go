//go:build profiled

package main

import "runtime/pprof"

// What refers to the runtime's own profile makes the linker leave it on.
var profile = pprof.Lookup("heap")
