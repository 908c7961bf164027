//! libFuzzer's program for [`tracer_fuzz::exits`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::exits::run(data));
