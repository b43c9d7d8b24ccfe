//! What the `tls` sections come to: settings of rustls made of the files, replaced while sessions use the old ones.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use trunkline_shared::service::tls::{self, ClientCertificates, ServerCheck, Stamp, TlsError};

use crate::auth::certificate::Binding;
use crate::config::tls::{TlsMode, TlsSection};
use crate::listener::limits::{MAX_HANDSHAKE, MAX_HANDSHAKE_WITH_CERTIFICATE};

/// The protocol's name in ALPN. A client that begins with TLS must name it; one that names others only is
/// refused: what it sends was meant for somebody else.
pub const ALPN: &[u8] = b"postgresql";

/// A section, and its files as they were when they were read.
#[derive(Debug, Default)]
struct Source {
    section: TlsSection,
    stamps: Vec<Option<Stamp>>,
}

impl Source {
    /// Before the files are read: what changes meanwhile is seen at the next look.
    fn of(section: &TlsSection) -> Self {
        Self {
            stamps: stamps(section),
            section: section.clone(),
        }
    }

    fn is_same_as(&self, other: &Self) -> bool {
        let TlsSection {
            mode,
            files,
            asks_for_certificates: _,
            at: _,
        } = &self.section;
        (*mode, files, &self.stamps) == (other.section.mode, &other.section.files, &other.stamps)
    }

    fn has_changed(&self) -> bool {
        stamps(&self.section) != self.stamps
    }
}

fn stamps(section: &TlsSection) -> Vec<Option<Stamp>> {
    let files = section
        .files
        .named()
        .filter(|_| section.mode > TlsMode::Disable);
    files.map(|file: &Path| Stamp::of(file)).collect()
}

/// How a listener speaks to its clients.
#[derive(Debug, Default)]
pub struct ClientTls {
    source: Source,
    settings: Option<Arc<ServerConfig>>,
    binding: Option<Binding>,
    asks_for_certificates: bool,
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(section: &TlsSection) -> Result<Self, TlsError> {
        let source = Source::of(section);
        let certificates = match section.mode {
            TlsMode::Disable => {
                return Ok(Self {
                    source,
                    ..Self::default()
                });
            }
            TlsMode::Allow | TlsMode::Prefer | TlsMode::Require => {
                match section.asks_for_certificates && section.files.ca.is_some() {
                    true => ClientCertificates::Optional,
                    false => ClientCertificates::Ignore,
                }
            }
            TlsMode::VerifyCa | TlsMode::VerifyFull => ClientCertificates::Required,
        };
        let (mut settings, leaf) = tls::server_and_leaf(&section.files, certificates)?;
        settings.alpn_protocols = vec![ALPN.to_vec()];
        // As PostgreSQL: no client of it resumes, and what is kept for that would cost memory.
        settings.session_storage = Arc::new(NoServerSessionStorage {});
        settings.send_tls13_tickets = 0;
        Ok(Self {
            source,
            settings: Some(Arc::new(settings)),
            binding: Binding::of(&leaf),
            asks_for_certificates: certificates != ClientCertificates::Ignore,
        })
    }

    /// The same from the files as they are now, if one of them has changed.
    ///
    /// # Errors
    /// As [`ClientTls::load`].
    pub fn renewed(&self) -> Result<Option<Self>, TlsError> {
        let renewed = self.source.has_changed();
        renewed
            .then(|| Self::load(&self.source.section))
            .transpose()
    }

    /// What a handshake needs; `None` where TLS is off.
    pub fn settings(&self) -> Option<&Arc<ServerConfig>> {
        self.settings.as_ref()
    }

    /// What SCRAM is bound to under this TLS; `None` where the certificate allows no binding.
    pub fn binding(&self) -> Option<&Binding> {
        self.binding.as_ref()
    }

    /// How many bytes a client may send before its handshake is over.
    pub fn longest_handshake(&self) -> usize {
        match self.asks_for_certificates {
            true => MAX_HANDSHAKE_WITH_CERTIFICATE,
            false => MAX_HANDSHAKE,
        }
    }

    /// Whether nobody logs in without TLS.
    pub fn is_required(&self) -> bool {
        self.source.section.mode >= TlsMode::Require
    }

    /// The key of its section.
    pub fn name(&self) -> &str {
        &self.source.section.at.0
    }
}

/// How PostgreSQL is spoken to.
#[derive(Debug, Default)]
pub struct ServerTls {
    source: Source,
    settings: Option<Arc<ClientConfig>>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(section: &TlsSection) -> Result<Self, TlsError> {
        let source = Source::of(section);
        let check = match section.mode {
            TlsMode::Disable => {
                return Ok(Self {
                    source,
                    settings: None,
                });
            }
            TlsMode::Allow | TlsMode::Prefer | TlsMode::Require => ServerCheck::Nothing,
            TlsMode::VerifyCa => ServerCheck::Issuer,
            TlsMode::VerifyFull => ServerCheck::IssuerAndName,
        };
        let mut settings = tls::client(&section.files, check)?;
        settings.alpn_protocols = vec![ALPN.to_vec()];
        // PostgreSQL resumes nothing.
        settings.resumption = Resumption::disabled();
        Ok(Self {
            source,
            settings: Some(Arc::new(settings)),
        })
    }

    /// The same from the files as they are now, if one of them has changed.
    ///
    /// # Errors
    /// As [`ServerTls::load`].
    pub fn renewed(&self) -> Result<Option<Self>, TlsError> {
        let renewed = self.source.has_changed();
        renewed
            .then(|| Self::load(&self.source.section))
            .transpose()
    }

    /// What a handshake needs; `None` where TLS is off.
    pub fn settings(&self) -> Option<&Arc<ClientConfig>> {
        self.settings.as_ref()
    }

    /// Whether servers that were opened by the other one are as good as those that this one opens.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.source.is_same_as(&other.source)
    }

    /// Whether SCRAM must be bound to the server's certificate where the server can do so: TLS is demanded and
    /// nothing else tells who answers.
    pub fn must_be_bound(&self) -> bool {
        self.source.section.mode == TlsMode::Require
    }

    /// Whether a server without TLS is not used.
    pub fn is_required(&self) -> bool {
        self.source.section.mode >= TlsMode::Require
    }
}
