//! Start-up packets, in pieces and written anew.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz_bodies::startup::run(data));
