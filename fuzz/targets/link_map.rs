//! libFuzzer's program for [`tracer_fuzz::link_map`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::link_map::run(data));
