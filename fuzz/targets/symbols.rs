//! libFuzzer's program for [`tracer_fuzz::symbols`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::symbols::run(data));
