//! libFuzzer's program for [`tracer_fuzz::go_tables`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::go_tables::run(data));
