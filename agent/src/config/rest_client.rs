//! `ctl:`, and what of `restapi:` stands in for it: how REST APIs are asked, by the command and by agents alike.

use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::tls::{TlsError, TlsFiles};

use super::UserPassword;
use super::restapi::{authentication, refuse_key_password};
use super::section::Section;

/// How REST APIs are asked.
#[derive(Clone, Debug, Default)]
pub struct RestClientConfig {
    /// The certificate that is shown, and who signed those of the members.
    pub files: TlsFiles,
    /// `insecure`: any certificate will do.
    pub is_insecure: bool,
    /// For unsafe requests.
    pub authentication: Option<UserPassword>,
}

impl RestClientConfig {
    /// The client. Where no file is named and the system trusts nobody, only `http` can be asked.
    ///
    /// # Errors
    /// A named file cannot be used.
    pub fn client(&self) -> Result<HttpClient, TlsError> {
        let credentials = self.authentication.as_ref();
        Ok(HttpClient {
            credentials: credentials.map(|user| (user.username.clone(), user.password.clone())),
            ..HttpClient::trusting(&self.files, self.is_insecure)?
        })
    }
}

/// Reads `ctl`; what it does not say, `restapi` says, as in Patroni.
pub fn read(ctl: &Section<'_>, restapi: RestClientConfig) -> RestClientConfig {
    refuse_key_password(ctl);
    let own = TlsFiles {
        certificate: ctl.file("certfile"),
        key: ctl.file("keyfile"),
        ca: ctl.file("cacert").or(restapi.files.ca),
    };
    let files = match own.certificate {
        Some(_) => own,
        None => TlsFiles {
            certificate: restapi.files.certificate,
            key: own.key.or(restapi.files.key),
            ca: own.ca,
        },
    };
    RestClientConfig {
        files,
        is_insecure: ctl.boolean("insecure").unwrap_or(false),
        authentication: authentication(ctl).or(restapi.authentication),
    }
}

/// What `restapi` says of itself and a client can use.
pub fn of_restapi(section: &Section<'_>) -> RestClientConfig {
    RestClientConfig {
        files: TlsFiles {
            certificate: section.file("certfile"),
            key: section.file("keyfile"),
            ca: section.file("cafile"),
        },
        is_insecure: false,
        authentication: authentication(section),
    }
}
