//! Log-ins in both roles against who does not keep to them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz_bodies::scram::run(data));
