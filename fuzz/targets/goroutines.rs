//! libFuzzer's program for [`tracer_fuzz::goroutines`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::goroutines::run(data));
