//! libFuzzer's program for [`tracer_fuzz::frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::frames::run(data));
