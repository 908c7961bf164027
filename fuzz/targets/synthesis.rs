//! libFuzzer's program for [`tracer_fuzz::synthesis`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::synthesis::run(data));
