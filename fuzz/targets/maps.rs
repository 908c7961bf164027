//! libFuzzer's program for [`tracer_fuzz::maps`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::maps::run(data));
