//! libFuzzer's program for [`tracer_fuzz::go_heap`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::go_heap::run(data));
