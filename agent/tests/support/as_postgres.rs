//! PostgreSQL refuses root. Started by root, a test therefore runs its own program again, for the one test, as user
//! `postgres`, from a folder that user may enter. The router's tests use this file, too.

use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Runs the test `name` again as user `postgres`, with copies of `programs` beside it; fails if it fails.
#[expect(
    clippy::disallowed_methods,
    reason = "the test starts itself as another user"
)]
pub fn run_again(name: &str, programs: &[(&str, &str)]) {
    let folder = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let test = std::env::current_exe().unwrap();
    let copies = [("test", test.to_str().unwrap())];
    for (copy, program) in copies.iter().chain(programs) {
        // By a process of its own: what another test starts at this moment would inherit a descriptor that the copy is
        // written through, and a program that somebody writes to cannot be executed ("Text file busy").
        let status = std::process::Command::new("install")
            .args(["-m", "755", program])
            .arg(folder.path().join(copy))
            .status()
            .expect("install (package coreutils) copies the test");
        assert!(status.success(), "{program} is not copied");
    }
    let status = std::process::Command::new("setpriv")
        .args([
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "--",
        ])
        .arg(folder.path().join("test"))
        .args(["--exact", name, "--nocapture"])
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .status()
        .expect("setpriv (package util-linux) runs the test as user postgres");
    assert!(status.success(), "{name} failed as user postgres");
}
