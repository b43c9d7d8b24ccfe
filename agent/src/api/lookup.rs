//! Host names of the allowlist to addresses, looked up only when an unsafe request comes from an address that is
//! not listed by number. One lookup at a time, with a limit: a resolver that hangs holds up nothing but these
//! requests.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

/// How long all names together may take.
const LIMIT: Duration = Duration::from_secs(2);

/// How long an address counts as the name's.
const KEPT: Duration = Duration::from_secs(30);

/// Pause after a lookup, so that strangers cannot make many of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause after one that hung: each may hold a thread until the resolver gives up.
const PAUSE_AFTER_HANG: Duration = Duration::from_secs(30);

/// The last lookup.
#[derive(Debug, Default)]
pub struct Lookup(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    hosts: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
    at: Option<Moment>,
    has_hung: bool,
}

impl Lookup {
    /// Whether `address` belongs to one of `hosts`.
    pub(super) async fn is_one_of(&self, hosts: BTreeSet<String>, address: IpAddr) -> bool {
        let is_number = |host: &String| host.parse::<IpAddr>().ok();
        if hosts
            .iter()
            .filter_map(is_number)
            .any(|ip| ip.to_canonical() == address)
        {
            return true;
        }
        let names: BTreeSet<String> = hosts
            .into_iter()
            .filter(|h| is_number(h).is_none())
            .collect();
        if names.is_empty() {
            return false;
        }
        let mut known = self.0.lock().await;
        let age = known.at.map(|at| clock::now().since(at));
        let is_same = known.hosts == names;
        let is_held = known.addresses.contains(&address);
        let pause = if known.has_hung {
            PAUSE_AFTER_HANG
        } else {
            PAUSE
        };
        let is_young = |limit: Duration| age.is_some_and(|age| age < limit);
        if is_same && ((is_held && is_young(KEPT)) || is_young(pause)) {
            return is_held;
        }
        known.look_up(names).await;
        known.addresses.contains(&address)
    }
}

impl Known {
    /// A name that is not found has no address.
    async fn look_up(&mut self, names: BTreeSet<String>) {
        let mut looking = JoinSet::new();
        for name in names.clone() {
            looking.spawn(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await;
                let found = found.map(|found| found.map(|a| a.ip().to_canonical()).collect());
                (name, found)
            });
        }
        let mut addresses = BTreeSet::new();
        let collect = async {
            while let Some(found) = looking.join_next().await {
                match found {
                    Ok((_, Ok(found))) => addresses.extend::<Vec<IpAddr>>(found),
                    Ok((name, Err(error))) => {
                        tracing::warn!(name, %error, "a name of restapi.allowlist is not found");
                    }
                    Err(error) => tracing::warn!(%error, "a lookup failed"),
                }
            }
        };
        self.has_hung = timeout(LIMIT, collect).await.is_err();
        if self.has_hung {
            tracing::warn!(
                "names of restapi.allowlist were not looked up within {LIMIT:?}: who comes from there is \
                 kept out"
            );
        }
        self.hosts = names;
        self.addresses = addresses;
        self.at = Some(clock::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_need_no_lookup_and_names_get_one() {
        let lookup = Lookup::default();
        let of = |hosts: &[&str]| hosts.iter().map(|h| (*h).to_owned()).collect();
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(lookup.is_one_of(of(&["127.0.0.1", "::2"]), here).await);
        assert!(!lookup.is_one_of(of(&["127.0.0.2"]), here).await);
        assert_eq!(lookup.0.lock().await.at, None);
        assert!(lookup.is_one_of(of(&["localhost"]), here).await);
        let there = "203.0.113.1".parse().unwrap();
        assert!(!lookup.is_one_of(of(&["localhost"]), there).await);
        assert!(lookup.0.lock().await.at.is_some());
    }
}
