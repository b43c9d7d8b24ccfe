//! A CA and certificates of it, made the way operators make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use trunkline_shared::service::tls::TlsFiles;

/// A folder with a CA.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes a CA.
    pub fn new() -> Self {
        let own = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let made = own.request("ca", "ca", "ca.crt", ("-x509", "P-256"));
        assert!(made, "this test needs openssl: apt-get install openssl");
        own
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes (or makes anew) a certificate `<name>.crt` with its key `<name>.key`, for localhost.
    pub fn issue(&self, name: &str) -> TlsFiles {
        self.issue_as(name, "P-256", true)
    }

    /// The same with a key of this curve, or of `RSA` or `Ed25519`. Without extensions it is of version 1, as by the recipe of PostgreSQL's
    /// documentation.
    pub fn issue_as(&self, name: &str, curve: &str, has_extensions: bool) -> TlsFiles {
        let request = format!("{name}.csr");
        assert!(self.request(name, name, &request, ("-new", curve)));
        let extensions = self.file("extensions");
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(&extensions, names).unwrap();
        let certificate = self.file(&format!("{name}.crt"));
        let mut signing = openssl();
        if has_extensions {
            signing.args([Path::new("x509"), Path::new("-extfile"), &extensions]);
        } else {
            signing.arg("x509");
        }
        let signed = signing
            .args(["-req", "-days", "2", "-sha256", "-CAcreateserial"])
            .args([Path::new("-in"), &self.file(&request)])
            .args([Path::new("-CA"), &self.file("ca.crt")])
            .args([Path::new("-CAkey"), &self.file("ca.key")])
            .args([Path::new("-out"), &certificate])
            .output()
            .unwrap();
        assert!(signed.status.success(), "{signed:?}");
        TlsFiles {
            certificate: Some(certificate),
            key: Some(self.file(&format!("{name}.key"))),
            ca: Some(self.file("ca.crt")),
        }
    }

    fn request(&self, key: &str, name: &str, out: &str, (kind, curve): (&str, &str)) -> bool {
        let parameter = format!("ec_paramgen_curve:{curve}");
        let algorithm: &[&str] = match curve {
            "RSA" => &["rsa:2048"],
            "Ed25519" => &["ed25519"],
            _ => &["ec", "-pkeyopt", &parameter],
        };
        let made = openssl()
            .args(["req", kind, "-nodes", "-days", "2", "-newkey"])
            .args(algorithm)
            .args(["-subj", &format!("/O=Trunkline/CN={name}")])
            .args([Path::new("-keyout"), &self.file(&format!("{key}.key"))])
            .args([Path::new("-out"), &self.file(out)])
            .output();
        made.is_ok_and(|made| made.status.success())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "openssl makes the certificates that the tests are about"
)]
fn openssl() -> Command {
    Command::new("openssl")
}
