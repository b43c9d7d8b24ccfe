//! What pooled listeners, their log-ins and their servers keep to at one moment. It is replaced as a whole and a
//! log-in looks at it once: nobody meets the TLS of one file and the users of another.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_shared::service::tls::TlsError;

use crate::config::ListenerConfig;
use crate::config::databases::Scopes;
use crate::config::pooling::{Mode, PoolConfig, PoolingConfig};
use crate::server::lookup::Lookups;
use crate::tls::{ClientTls, ServerTls};

/// How clients come in at one listener: what they are asked for, and what hides it.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// How the listener speaks to its clients.
    pub tls: Arc<ClientTls>,
    /// Who they are, and how they prove it.
    pub pooling: Arc<PoolingConfig>,
    /// What PostgreSQL has said of them.
    pub lookups: Arc<Lookups>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The sections of pooled listeners.
    pub pooling: Arc<PoolingConfig>,
    /// How PostgreSQL is spoken to.
    pub server: Arc<ServerTls>,
    /// What PostgreSQL was asked by `auth.query` of this file.
    lookups: Arc<Lookups>,
    /// By the address of the listener.
    entrances: BTreeMap<String, Entrance>,
}

/// What a look at the files of TLS found, by the key of the section or the listener's address.
pub type Looked = Vec<(String, Result<(), TlsError>)>;

impl InForce {
    /// Of a file. Everything that can fail is done here.
    ///
    /// # Errors
    /// Names the file of TLS and what is wrong with it.
    pub fn load(pooling: PoolingConfig, listeners: &[ListenerConfig]) -> Result<Self, TlsError> {
        Self::with(pooling, listeners, Arc::default())
    }

    fn with(
        pooling: PoolingConfig,
        listeners: &[ListenerConfig],
        lookups: Arc<Lookups>,
    ) -> Result<Self, TlsError> {
        let server = Arc::new(ServerTls::load(&pooling.tls_server)?);
        let pooling = Arc::new(pooling);
        let pooled = listeners.iter().filter(|own| own.mode != Mode::Tcp);
        let entrances = pooled.map(|listener| {
            let entrance = Entrance {
                tls: Arc::new(ClientTls::load(&listener.tls)?),
                pooling: pooling.clone(),
                lookups: lookups.clone(),
            };
            Ok((listener.listen.to_string(), entrance))
        });
        Ok(Self {
            entrances: entrances.collect::<Result<_, TlsError>>()?,
            server,
            pooling,
            lookups,
        })
    }

    /// What a new file comes to in this process. Ports change by a restart only: one that runs and is pooled no more
    /// in the file, or gone from it, keeps what it has, its TLS and its users together. Those are returned.
    ///
    /// # Errors
    /// As [`InForce::load`].
    pub fn followed_by(
        &self,
        pooling: PoolingConfig,
        listeners: &[ListenerConfig],
    ) -> Result<(Self, Vec<String>), TlsError> {
        // Answers to another question are none to this one.
        let lookups = match self.pooling.auth.lookup == pooling.auth.lookup {
            true => self.lookups.clone(),
            false => Arc::default(),
        };
        let mut new = Self::with(pooling, listeners, lookups)?;
        // What servers were opened by stays the same one where nothing has changed: others are closed.
        if new.server.is_same_as(&self.server) {
            new.server = self.server.clone();
        }
        new.entrances
            .retain(|address, _| self.entrances.contains_key(address));
        let mut kept = Vec::new();
        for (address, entrance) in &self.entrances {
            if !new.entrances.contains_key(address) {
                new.entrances.insert(address.clone(), entrance.clone());
                kept.push(address.clone());
            }
        }
        Ok((new, kept))
    }

    /// Every cluster that the database of some client leads to.
    pub fn scopes(&self) -> Scopes {
        let mut all = Scopes::default();
        let entrances = self.entrances.values().map(|own| &own.pooling);
        for pooling in entrances.chain([&self.pooling]) {
            let own = Scopes::of(&[], pooling.databases.as_ref());
            all.named.extend(own.named);
            all.patterns.extend(own.patterns);
        }
        all
    }

    /// Forgets how a cluster was asked for users that is not followed any more.
    pub fn forget_lines(&self, cluster: &str) {
        let entrances = self.entrances.values().map(|own| &own.lookups);
        for lookups in entrances.chain([&self.lookups]) {
            lookups.forget_lines(cluster);
        }
    }

    /// The same with other limits and times of pools; TLS and users stay together.
    pub fn with_pool(&self, pool: PoolConfig) -> Self {
        let mut new = self.clone();
        let changed = |pooling: &PoolingConfig| {
            Arc::new(PoolingConfig {
                pool: pool.clone(),
                ..pooling.clone()
            })
        };
        new.pooling = changed(&self.pooling);
        for entrance in new.entrances.values_mut() {
            // One that the file has no more keeps its own.
            entrance.pooling = match Arc::ptr_eq(&entrance.pooling, &self.pooling) {
                true => new.pooling.clone(),
                false => changed(&entrance.pooling),
            };
        }
        new
    }

    /// How clients come in at the listener of this address.
    pub fn entrance(&self, address: &str) -> Option<&Entrance> {
        self.entrances.get(address)
    }

    /// Takes up the files of TLS that have changed, each for itself.
    pub fn renew(&mut self) -> Looked {
        let mut looked = Vec::new();
        for (address, entrance) in &mut self.entrances {
            if let Some(renewed) = entrance.tls.renewed().transpose() {
                let taken = renewed.map(|tls| entrance.tls = Arc::new(tls));
                looked.push((format!("{address} ({})", entrance.tls.name()), taken));
            }
        }
        if let Some(renewed) = self.server.renewed().transpose() {
            let taken = renewed.map(|tls| self.server = Arc::new(tls));
            looked.push(("tls.server".to_owned(), taken));
        }
        looked
    }
}
