//! libFuzzer's program for [`tracer_fuzz::elf`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracer_fuzz::elf::run(data));
