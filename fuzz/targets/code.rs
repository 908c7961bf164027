//! libFuzzer's program for [`tracer_fuzz::code`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::code::run(data));
