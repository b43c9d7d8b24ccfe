//! Every file that an operator writes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz_bodies::config::run(data));
