//! libFuzzer's program for [`tracer_fuzz::names`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::names::run(data));
