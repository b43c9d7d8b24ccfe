//! Messages in pieces, and what a pooled server owes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz_bodies::framing::run(data));
