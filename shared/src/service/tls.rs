//! TLS settings from files, with reload.
//!
//! One provider (ring). A self-signed certificate that is its own CA works where it is pinned as the CA
//! file: rustls refuses a CA certificate as an end entity, so an exact match with the pinned file is accepted
//! here, if its name fits.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
pub use rustls::ServerConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
};

use unchecked::Unchecked;

mod unchecked;

/// Why TLS settings cannot be used. The ones from before stay in force.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("the {what} {file} cannot be used: {why}")]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// The parts do not fit together.
    #[error("the TLS settings of {files} cannot be used: {source}")]
    Settings {
        /// The files they are from.
        files: String,
        /// In rustls's words.
        source: Error,
    },
}

/// The files of one side.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// Our certificates (PEM), leaf first.
    pub certificate: Option<PathBuf>,
    /// The key (PEM); absent: in the certificate's file.
    pub key: Option<PathBuf>,
    /// What the other side's certificate is checked by (PEM). A client without it trusts what its system
    /// trusts.
    pub ca: Option<PathBuf>,
}

/// How often files are looked at for having changed.
pub const FILES_LOOK: Duration = Duration::from_secs(10);

/// A file as it was: another one, or a rewritten one, has another stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Of the file as it is now; `None` where there is none.
    pub fn of(file: &Path) -> Option<Self> {
        let found = std::fs::metadata(file).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

impl TlsFiles {
    /// Every file that is named, in a fixed order.
    pub fn named(&self) -> impl Iterator<Item = &Path> {
        let each = [&self.certificate, &self.key, &self.ca];
        each.into_iter().flatten().map(PathBuf::as_path)
    }
}

/// How a server treats its clients' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// Not asked for.
    #[default]
    Ignore,
    /// Asked for, and checked where given.
    Optional,
    /// Demanded.
    Required,
}

/// How a client checks the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ServerCheck {
    /// Encrypt only.
    Nothing,
    /// The certificate must come from the CA, whatever its name (`verify-ca`).
    Issuer,
    /// And its name must be the host's (`verify-full`).
    #[default]
    IssuerAndName,
}

/// The one provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(what: &'static str, file: &Path, why: impl ToString) -> TlsError {
    TlsError::File {
        what,
        file: file.to_owned(),
        why: why.to_string(),
    }
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(what, file, error))?;
    if found.is_empty() {
        return Err(unusable(what, file, "it holds no certificate"));
    }
    Ok(found)
}

fn identity(
    files: &TlsFiles,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsError> {
    let Some(file) = &files.certificate else {
        return Ok(None);
    };
    let chain = certificates("certificate", file)?;
    let key_file = files.key.as_ref().unwrap_or(file);
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
        if is_encrypted(key_file) {
            let why = "it is protected by a password; write it without one (openssl pkey -in KEY -out NEWKEY), \
                 readable by this user alone";
            return unusable("key", key_file, why);
        }
        unusable("key", key_file, error)
    })?;
    Ok(Some((chain, key)))
}

/// Whether a key that was not understood is one that needs a password.
fn is_encrypted(file: &Path) -> bool {
    let text = std::fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&text).contains("ENCRYPTED")
}

fn roots(file: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let pinned = certificates("CA file", file)?;
    let mut roots = RootCertStore::empty();
    for certificate in &pinned {
        roots
            .add(certificate.clone())
            .map_err(|error| unusable("CA file", file, error))?;
    }
    Ok((roots, pinned))
}

/// The certificates that this system trusts.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = "no CA file is named and this system trusts no certificate; name one, or install ca-certificates";
        return Err(unusable("CA file", Path::new("(the system's)"), why));
    }
    Ok(roots)
}

fn names(files: &TlsFiles) -> String {
    files
        .named()
        .map(|file| file.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn mistaken(files: &TlsFiles, error: impl Into<Error>) -> TlsError {
    TlsError::Settings {
        files: names(files),
        source: error.into(),
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(OtherError(Arc::new(error)))
}

/// A server's settings.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn server(files: &TlsFiles, clients: ClientCertificates) -> Result<ServerConfig, TlsError> {
    Ok(server_and_leaf(files, clients)?.0)
}

/// The same, and the certificate that is shown: of one read, so that both are the same one while the file is replaced.
///
/// # Errors
/// As [`server`].
pub fn server_and_leaf(
    files: &TlsFiles,
    clients: ClientCertificates,
) -> Result<(ServerConfig, CertificateDer<'static>), TlsError> {
    let nothing = |why| unusable("certificate", Path::new(""), why);
    let Some((chain, key)) = identity(files)? else {
        return Err(nothing("no file is named"));
    };
    let Some(leaf) = chain.first().cloned() else {
        return Err(nothing("no certificate is in the file"));
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| mistaken(files, error))?;
    let verifier = match (clients, &files.ca) {
        (ClientCertificates::Ignore, _) => None,
        (_, ca) => {
            let (roots, pinned) = match ca {
                Some(ca) => roots(ca)?,
                None => (system_roots()?, Vec::new()),
            };
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            let verifier = match clients {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                ClientCertificates::Required | ClientCertificates::Ignore => verifier,
            };
            let webpki = verifier
                .build()
                .map_err(|error| mistaken(files, other(error)))?;
            Some(Arc::new(PinnedClients { webpki, pinned }))
        }
    };
    let builder = match verifier {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let settings = builder.with_single_cert(chain, key);
    Ok((settings.map_err(|error| mistaken(files, error))?, leaf))
}

/// A client's settings.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn client(files: &TlsFiles, check: ServerCheck) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| mistaken(files, error))?;
    let verifier: Arc<dyn ServerCertVerifier> = match (check, &files.ca) {
        (ServerCheck::Nothing, _) => Arc::new(Unchecked {
            provider: provider(),
        }),
        (_, ca) => {
            let (roots, pinned) = match ca {
                Some(ca) => roots(ca)?,
                None => (system_roots()?, Vec::new()),
            };
            let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .map_err(|error| mistaken(files, other(error)))?;
            Arc::new(PinnedServer {
                webpki,
                pinned,
                checks_name: check == ServerCheck::IssuerAndName,
            })
        }
    };
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match identity(files)? {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| mistaken(files, error)),
    }
}

/// Settings that can be replaced while connections use the old ones.
#[derive(Debug, Default)]
pub struct Reloadable<T> {
    current: ArcSwap<T>,
}

/// A server's settings, replaceable.
pub type ServerSettings = Reloadable<ServerConfig>;

impl<T> Reloadable<T> {
    /// The first settings.
    pub fn new(settings: T) -> Self {
        Self {
            current: ArcSwap::from_pointee(settings),
        }
    }

    /// What a new connection uses.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Replaces them for connections to come.
    pub fn replace(&self, settings: T) {
        self.current.store(Arc::new(settings));
    }

    /// The same if `seen` is still what is in force; whether it was.
    pub fn exchange(&self, seen: &Arc<T>, settings: T) -> bool {
        let found = self.current.compare_and_swap(seen, Arc::new(settings));
        Arc::ptr_eq(&found, seen)
    }
}

/// Whether webpki refused only because the certificate is a CA's own.
fn is_self_signed_refusal(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            other.to_string().contains("CaUsedAsEndEntity")
        }
        _ => false,
    }
}

#[derive(Debug)]
struct PinnedServer {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
    checks_name: bool,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let is_pinned = self.pinned.iter().any(|pinned| pinned == end_entity);
        match verdict {
            Err(error) if is_pinned && is_self_signed_refusal(&error) => {
                if self.checks_name {
                    let parsed = ParsedCertificate::try_from(end_entity)?;
                    rustls::client::verify_server_name(&parsed, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.checks_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct PinnedClients {
    webpki: Arc<dyn ClientCertVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ClientCertVerifier for PinnedClients {
    fn offer_client_auth(&self) -> bool {
        self.webpki.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let is_pinned = self.pinned.iter().any(|pinned| pinned == end_entity);
        match self
            .webpki
            .verify_client_cert(end_entity, intermediates, now)
        {
            Err(error) if is_pinned && is_self_signed_refusal(&error) => {
                Ok(ClientCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
