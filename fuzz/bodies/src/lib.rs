//! What the fuzz targets do with their bytes, in ordinary code: libFuzzer calls it from `fuzz/fuzz_targets`, and the
//! tests below run it over the committed corpora on the stable toolchain.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// A corpus with fewer files than this was lost, or was not looked for in the right place.
    const LEAST: usize = 40;

    fn replay(target: &str) {
        let (_, body) = TARGETS
            .into_iter()
            .find(|(name, _)| *name == target)
            .unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
        let mut files = 0;
        for entry in std::fs::read_dir(folder.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            let lived = std::panic::catch_unwind(|| body(&input));
            assert!(lived.is_ok(), "{} fails", path.display());
            files += 1;
        }
        assert!(files >= LEAST, "{target} has {files} inputs");
    }

    #[test]
    fn startup_packets_of_the_corpus() {
        replay("startup");
    }

    #[test]
    fn messages_of_the_corpus() {
        replay("framing");
    }

    #[test]
    fn log_ins_of_the_corpus() {
        replay("scram");
    }

    #[test]
    fn proxy_headers_of_the_corpus() {
        replay("proxy");
    }

    #[test]
    fn records_of_the_corpus() {
        replay("records");
    }

    #[test]
    fn files_of_the_corpus() {
        replay("config");
    }

    #[test]
    fn every_target_has_its_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz_targets");
        let programs: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        let targets: BTreeSet<String> =
            TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(programs, targets);
    }
}
