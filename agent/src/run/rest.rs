//! The REST API's socket, certificates and rules, and the client that asks the others: what of it a reload, or a
//! changed file, replaces while the agent runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::tls::{
    self, ClientCertificates, FILES_LOOK, Reloadable, ServerConfig, ServerSettings, Stamp, TlsError,
};

use super::Inherited;
use crate::api::{self, Access, Api};
use crate::config::{Address, AgentConfig, RestApiConfig, RestClientConfig, ServerTls};

/// Pause between attempts to listen on the API's address.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// How long answers under way may take when another program takes over.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long a program that has taken over may take to know its part before it answers all the same.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// How often it is looked whether it knows.
const KNOWN_LOOK: Duration = Duration::from_millis(5);

/// The API and the client of the others'.
pub(super) struct Rest {
    tls: Option<Arc<ServerSettings>>,
    access: Arc<Reloadable<Access>>,
    client: Arc<Reloadable<HttpClient>>,
    told: Mutex<Told>,
    address: String,
    /// The listening socket: it is kept open while nobody serves it.
    kept: Mutex<Option<Arc<std::net::TcpListener>>>,
}

/// Which files are in force, and as what they were seen last.
struct Told {
    named: Arc<Named>,
    stamps: Vec<Option<Stamp>>,
}

/// What a configuration names.
struct Named {
    tls: Option<ServerTls>,
    client: RestClientConfig,
}

/// What was made of the files.
struct Built {
    tls: Option<ServerConfig>,
    client: HttpClient,
}

impl Rest {
    /// Reads every file that is named.
    pub(super) fn new(config: &AgentConfig) -> Result<Self, TlsError> {
        let told = Told::of(config);
        let Built { tls, client } = told.named.build()?;
        Ok(Self {
            tls: tls.map(Reloadable::new).map(Arc::new),
            access: Arc::new(Reloadable::new(access(&config.restapi))),
            client: Arc::new(Reloadable::new(client)),
            told: Mutex::new(told),
            address: listen_address(&config.restapi.listen),
            kept: Mutex::default(),
        })
    }

    pub(super) fn access(&self) -> Arc<Reloadable<Access>> {
        self.access.clone()
    }

    pub(super) fn client(&self) -> Arc<Reloadable<HttpClient>> {
        self.client.clone()
    }

    /// Takes up a configuration that was read again, and every file anew: all of it, or nothing. Who may change
    /// something depends on what clients have to show. The scheme stays: the members know this one by its URL.
    ///
    /// # Errors
    /// A file cannot be used; what was in force stays so.
    pub(super) fn take_up(&self, config: &AgentConfig) -> Result<(), String> {
        let told = Told::of(config);
        let built = told.named.build().map_err(|error| error.to_string())?;
        let mut current = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        self.put_in_force(built);
        self.access.replace(access(&config.restapi));
        *current = told;
        Ok(())
    }

    fn put_in_force(&self, built: Built) {
        if let (Some(current), Some(tls)) = (&self.tls, built.tls) {
            current.replace(tls);
        }
        self.client.replace(built.client);
    }

    /// Reads the files again; whether one of them had changed.
    fn read_changed_files(&self) -> Result<bool, TlsError> {
        let (named, before) = {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            (told.named.clone(), told.stamps.clone())
        };
        // Before they are read: what changes meanwhile is seen at the next look.
        let stamps = stamps(&named.files());
        if stamps == before {
            return Ok(false);
        }
        let built = named.build();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // A reload that came in between has read them too, or others.
        if Arc::ptr_eq(&told.named, &named) {
            told.stamps = stamps;
            self.put_in_force(built?);
        }
        Ok(true)
    }

    /// Reads the files again when one of them has changed. A disk that hangs holds up nothing else.
    pub(super) async fn watch_files(self: Arc<Self>) {
        let mut looks = tokio::time::interval(FILES_LOOK);
        loop {
            looks.tick().await;
            let rest = self.clone();
            let looked = tokio::task::spawn_blocking(move || rest.read_changed_files());
            match looked.await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => tracing::info!("changed certificates are in force"),
                Ok(Err(error)) => tracing::error!(
                    %error,
                    "changed certificates cannot be used; the ones from before stay in force"
                ),
                Err(error) => tracing::error!(%error, "the certificates were not looked at"),
            }
        }
    }

    /// The listening socket, once there is one.
    pub(super) fn listener(&self) -> Option<Arc<std::net::TcpListener>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone()
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Goes on with the socket of the program before, if it is one for the same address.
    pub(super) fn taking_over(self, inherited: Inherited) -> Self {
        let socket = inherited.listener;
        let same = socket.filter(|(_, address)| *address == self.address);
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) =
            same.map(|(listener, _)| Arc::new(listener));
        self
    }

    /// Serves until the returned handle says otherwise.
    pub(super) fn serve(self: Arc<Self>, api: Api) -> Serving {
        let stop = CancellationToken::new();
        let task = tokio::spawn(self.serve_until(api, stop.clone()));
        Serving { stop, task }
    }

    /// Listens and serves; an address in use may become free, and the agent leads meanwhile all the same.
    async fn serve_until(self: Arc<Self>, api: Api, stop: CancellationToken) {
        let kept = self.listener();
        let listener = match kept {
            Some(kept) => {
                // Whoever asks meanwhile waits in the socket's queue: a "no" of one who has not looked yet would be
                // taken for the end of the leadership.
                if timeout(FIRST_LOOK, knows(&api)).await.is_err() {
                    tracing::warn!("the REST API answers before this member knows its part");
                }
                kept
            }
            None => {
                let bound = tokio::select! {
                    bound = bind(&self.address) => Arc::new(bound),
                    () = stop.cancelled() => return,
                };
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.insert(bound).clone()
            }
        };
        let address = self.address.as_str();
        let listening = listener.try_clone().and_then(TcpListener::from_std);
        match listening {
            Ok(listening) => {
                tracing::info!(address, tls = self.tls.is_some(), "the REST API listens");
                api::serve(listening, api, self.tls.clone(), stop).await;
            }
            Err(error) => tracing::error!(%error, address, "the REST API does not listen"),
        }
    }
}

/// The API at work.
pub(super) struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    /// Lets answers under way finish, for a moment; the socket stays open, and whoever comes waits.
    pub(super) async fn end(self) {
        self.stop.cancel();
        if timeout(LAST_ANSWERS, self.task).await.is_err() {
            tracing::warn!("answers under way are cut off");
        }
    }

    /// Ends it, and waits for nobody.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}

/// Binds, sooner or later.
async fn bind(address: &str) -> std::net::TcpListener {
    let mut said = false;
    loop {
        let bound = TcpListener::bind(address).await;
        match bound.and_then(TcpListener::into_std) {
            Ok(listener) => return listener,
            Err(error) => {
                if !said {
                    tracing::error!(%error, address, "restapi.listen: cannot listen; retrying");
                    said = true;
                }
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
        }
    }
}

/// Goes on with the restart that the program before has handed on, if there is one; its conditions are looked at once
/// it is known which PostgreSQL runs.
pub(super) fn resume_restart(api: &Api, told: Option<String>) {
    let Some(told) = told else {
        return;
    };
    api.scheduled_restart.take_over(&told);
    let api = api.clone();
    tokio::spawn(async move {
        if timeout(FIRST_LOOK, knows(&api)).await.is_err() {
            tracing::warn!("a scheduled restart is waited for before this member knows its part");
        }
        api::resume_scheduled_restart(api).await;
    });
}

/// Waits until a turn has published what this member is, and that it leads if its key says so.
async fn knows(api: &Api) {
    loop {
        let published = api.published.load_full();
        let leads = published.holds_lease(clock::now());
        let topology = &published.topology;
        let leader = topology.leader.as_ref().map(|leader| &leader.member);
        let is_other = topology.revision > 0 && leader != Some(&published.name);
        if published.reason.is_some() && (leads || is_other) {
            return;
        }
        tokio::time::sleep(KNOWN_LOOK).await;
    }
}

impl Told {
    fn of(config: &AgentConfig) -> Self {
        let named = Named {
            tls: config.restapi.tls.clone(),
            client: config.rest_client.clone(),
        };
        Self {
            // Before they are read: what changes meanwhile is seen at the next look.
            stamps: stamps(&named.files()),
            named: Arc::new(named),
        }
    }
}

impl Named {
    /// Reads every file; nothing of it is in force yet.
    fn build(&self) -> Result<Built, TlsError> {
        let tls = self.tls.as_ref();
        let tls = tls.map(|tls| tls::server(&tls.files, tls.clients));
        Ok(Built {
            tls: tls.transpose()?,
            client: self.client.client()?,
        })
    }

    /// Every file that is named, in a fixed order.
    fn files(&self) -> Vec<PathBuf> {
        let server = self.tls.as_ref().map(|tls| &tls.files);
        let each = server.into_iter().chain([&self.client.files]);
        each.flat_map(|files| files.named())
            .map(Path::to_owned)
            .collect()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

/// Every address is one of IPv6 that IPv4 reaches too, as Patroni has it for `*`.
fn listen_address(listen: &Address) -> String {
    match listen.host.as_str() {
        "*" => format!("[::]:{}", listen.port),
        _ => listen.to_string(),
    }
}

fn access(config: &RestApiConfig) -> Access {
    let tls = config.tls.as_ref();
    Access {
        allowlist: config.allowlist.clone(),
        needs_certificate: tls.is_some_and(|tls| tls.clients != ClientCertificates::Ignore),
        authentication: config.authentication.clone(),
        headers: config.headers.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::config::load;

    /// A configuration with these lines, which name files of `folder`.
    fn config(folder: &Path, lines: &str) -> AgentConfig {
        let path = folder.join("n1.yml");
        let text = format!(
            "scope: demo\nname: n1\netcd3: {{hosts: \"10.0.0.1:2379\"}}\n\
             postgresql: {{listen: \"10.0.0.1:5432\", data_dir: /data}}\n{lines}"
        );
        fs::write(&path, text.replace("FOLDER", &folder.display().to_string())).unwrap();
        load(&path, &BTreeMap::new()).unwrap().0
    }

    #[test]
    fn a_reload_whose_certificate_cannot_be_read_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let guarded = "restapi: {authentication: {username: admin, password: secret}}\n";
        let rest = Rest::new(&config(folder.path(), guarded)).unwrap();
        let (access, client) = (rest.access().current(), rest.client().current());
        let open = config(folder.path(), "ctl: {cacert: FOLDER/ca.crt}\n");
        for content in [None, Some("no certificate")] {
            if let Some(content) = content {
                fs::write(folder.path().join("ca.crt"), content).unwrap();
            }
            let why = rest.take_up(&open).unwrap_err();
            assert!(why.contains("ca.crt"), "{why}");
            assert!(Arc::ptr_eq(&rest.access().current(), &access), "{why}");
            assert!(Arc::ptr_eq(&rest.client().current(), &client), "{why}");
            // What was refused is not looked at every ten seconds either.
            assert!(!rest.read_changed_files().unwrap());
        }
        let closed = access.authentication.is_some();
        rest.take_up(&config(folder.path(), "")).unwrap();
        let now = rest.access().current().authentication.is_some();
        assert_eq!((closed, now), (true, false), "what can be read is taken up");
    }
}
