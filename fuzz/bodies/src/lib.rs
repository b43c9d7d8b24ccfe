//! What the fuzz targets do with their bytes, in ordinary code: libFuzzer calls it from `fuzz/fuzz_targets`, and
//! `tests/corpus.rs` runs it over the committed corpora on the stable toolchain.
//!
//! A body looks at bytes that anybody may send or write, and ends in a panic where a promise about them does not
//! hold: the code under test must not panic itself, must come to the same result in whatever pieces the bytes come,
//! must read back what it has written, and lets nobody in who has not proved who it is.

pub mod config;
mod draw;
mod exchange;
pub mod framing;
pub mod proxy;
pub mod records;
pub mod scram;
pub mod startup;

/// Looks at one input.
pub type Body = fn(&[u8]);

/// Every target: the name of its folder in `fuzz/corpus`, and what it does.
pub const TARGETS: [(&str, Body); 6] = [
    ("startup", startup::run),
    ("framing", framing::run),
    ("scram", scram::run),
    ("proxy", proxy::run),
    ("records", records::run),
    ("config", config::run),
];
