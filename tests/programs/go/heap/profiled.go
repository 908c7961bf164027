// The runtime's own profile. HEAP_PROFILE_RATE sets its rate.
//go:build profiled

package main

import (
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
)

func init() {
	if rate, err := strconv.Atoi(os.Getenv("HEAP_PROFILE_RATE")); err == nil {
		runtime.MemProfileRate = rate
	}
}

func profile(name string) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := pprof.Lookup("heap").WriteTo(file, 1); err != nil {
		return err
	}
	return file.Close()
}
