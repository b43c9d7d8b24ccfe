//! What stands under the keys of the DCS.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz_bodies::records::run(data));
