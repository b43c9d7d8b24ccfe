//! What the exchanges take from certificates: the data that SCRAM binds an exchange to its TLS connection with,
//! and the name of a client.

use std::fmt;

use ring::digest::{self, Algorithm, SHA256, SHA384, SHA512};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, SliceReader};

/// `id-RSASSA-PSS`, whose hash is in its parameters.
const RSA_PSS: &str = "1.2.840.113549.1.1.10";
/// `id-at-commonName`.
const COMMON_NAME: &str = "2.5.4.3";

/// The hash by which a signature was made. Where that is MD5 or SHA-1 the binding's is SHA-256 (RFC 5929).
const HASHES: [(&str, &Algorithm); 9] = [
    ("1.2.840.113549.1.1.4", &SHA256),
    ("1.2.840.113549.1.1.5", &SHA256),
    ("1.2.840.113549.1.1.11", &SHA256),
    ("1.2.840.113549.1.1.12", &SHA384),
    ("1.2.840.113549.1.1.13", &SHA512),
    ("1.2.840.10045.4.1", &SHA256),
    ("1.2.840.10045.4.3.2", &SHA256),
    ("1.2.840.10045.4.3.3", &SHA384),
    ("1.2.840.10045.4.3.4", &SHA512),
];

/// `tls-server-end-point` (RFC 5929): a hash of the server's certificate. Both sides know it, and one between
/// them shows another certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Binding(Vec<u8>);

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Binding")
    }
}

impl Binding {
    /// Of a certificate (DER). `None` where the binding is not defined for its signature, as for Ed25519.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let parsed = Certificate::from_der(certificate).ok()?;
        let signature = parsed.signature_algorithm();
        let mut hash = signature.oid.to_string();
        if hash == RSA_PSS {
            hash = pss_hash(signature.parameters.as_ref()?.value())?;
        }
        let known = HASHES.iter().find(|(name, _)| *name == hash);
        known.map(|(_, algorithm)| Self(digest::digest(algorithm, certificate).as_ref().to_vec()))
    }

    /// One that is of no certificate.
    #[cfg(test)]
    pub fn for_test(byte: u8) -> Self {
        Self(vec![byte; 32])
    }

    /// The hash.
    pub fn data(&self) -> &[u8] {
        &self.0
    }
}

/// The hash in the parameters of RSASSA-PSS: `[0] { SEQUENCE { hash, ... } }` comes first, or SHA-1 is meant.
fn pss_hash(parameters: &[u8]) -> Option<String> {
    use x509_cert::der::{AnyRef, Reader};
    if parameters.first() != Some(&0xA0) {
        return Some("1.2.840.113549.1.1.5".to_owned());
    }
    let mut reader = SliceReader::new(parameters).ok()?;
    let tagged: AnyRef<'_> = reader.decode().ok()?;
    let sequence = AnyRef::from_der(tagged.value()).ok()?;
    let mut inside = SliceReader::new(sequence.value()).ok()?;
    let hash: ObjectIdentifier = inside.decode().ok()?;
    // By the signatures of RSA with these hashes, which the list has.
    Some(match hash.to_string().as_str() {
        "2.16.840.1.101.3.4.2.1" => "1.2.840.113549.1.1.11".to_owned(),
        "2.16.840.1.101.3.4.2.2" => "1.2.840.113549.1.1.12".to_owned(),
        "2.16.840.1.101.3.4.2.3" => "1.2.840.113549.1.1.13".to_owned(),
        other => other.to_owned(),
    })
}

/// The common name of a certificate's subject (DER). Of several the first, as in PostgreSQL.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let subject = parsed.tbs_certificate().subject();
    let mut names = subject.iter();
    let name = names.find(|name| name.oid.to_string() == COMMON_NAME)?;
    let text = std::str::from_utf8(name.value.value()).ok()?;
    // A name with a zero byte in it is a trick.
    (!text.contains('\0')).then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
