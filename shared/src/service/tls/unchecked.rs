//! TLS with a server whose certificate is not asked where it is from. What it is not asked for cannot be wrong: a
//! certificate of version 1, which `openssl x509 -req` makes and webpki refuses to read, serves as well. The key in
//! it must have signed the handshake all the same, or channel binding would be bound to nothing.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

/// Encrypts without asking who is there, as PostgreSQL's `sslmode=require` does.
#[derive(Debug)]
pub(super) struct Unchecked {
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms) {
            Err(why) if is_of_the_form(&why) => self.verify_by_key(message, cert, dss),
            verdict => verdict,
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms) {
            Err(why) if is_of_the_form(&why) => {
                let key = SubjectPublicKeyInfoDer::from(key_of(cert)?.whole);
                rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
            }
            verdict => verdict,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl Unchecked {
    /// By the key itself: for TLS 1.2, where a scheme does not say the curve and each is tried.
    fn verify_by_key(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = key_of(cert)?;
        let known = self.provider.signature_verification_algorithms.mapping;
        let is_signed = known
            .iter()
            .filter(|(scheme, _)| *scheme == dss.scheme)
            .flat_map(|(_, algorithms)| algorithms.iter())
            .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == key.algorithm)
            .any(|algorithm| {
                let verdict = algorithm.verify_signature(&key.bits, message, dss.signature());
                verdict.is_ok()
            });
        match is_signed {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }
}

/// Whether the certificate was refused for what it is, and not for a wrong signature.
fn is_of_the_form(why: &Error) -> bool {
    matches!(why, Error::InvalidCertificate(why) if *why != CertificateError::BadSignature)
}

/// A public key as it stands in a certificate.
struct Key {
    /// SubjectPublicKeyInfo.
    whole: Vec<u8>,
    /// The algorithm's identifier, without the header of its SEQUENCE.
    algorithm: Vec<u8>,
    bits: Vec<u8>,
}

fn key_of(certificate: &[u8]) -> Result<Key, Error> {
    let unreadable = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
    let parsed = Certificate::from_der(certificate).map_err(unreadable)?;
    let info = parsed.tbs_certificate().subject_public_key_info();
    let algorithm = info.algorithm.to_der().map_err(unreadable)?;
    Ok(Key {
        whole: info.to_der().map_err(unreadable)?,
        // Kind and length: no known identifier is so long that it would take more than a byte.
        algorithm: algorithm.get(2..).unwrap_or_default().to_vec(),
        bits: info.subject_public_key.raw_bytes().to_vec(),
    })
}
