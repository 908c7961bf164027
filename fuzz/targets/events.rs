//! libFuzzer's program for [`tracer_fuzz::events`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::events::run(data));
