//! `pgbouncer.ini` as a router's file. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Map, Value, json};

use super::ini::{Entry, Pairs, pairs};
use super::notes::Place;
use super::router_file::Translation;
use super::scopes::{Destination, Scopes};

pub mod keys;

use keys::{DATABASE, Meaning, SETTINGS, USER, meaning};

/// PgBouncer's port.
const DEFAULT_PORT: u16 = 6432;
/// PgBouncer's `max_client_conn` where the file is silent.
const DEFAULT_MAX_CLIENT_CONN: u64 = 100;

/// Bytes of a name of PostgreSQL's, of PgBouncer's databases and users too (NAMEDATALEN and MAX_DBNAME, less the end).
/// What YAML reads as a key has a limit as well, 1,024 characters.
const LONGEST_NAME: usize = 63;
/// Characters that are shown of one that is longer.
const SHOWN_OF_A_NAME: usize = 20;

/// Translates the lines of a file. `userlist` stands in the place of `auth_file`.
///
/// # Errors
/// What the operator has to say first, such as the cluster behind a host.
pub fn translate(
    entries: &[Entry],
    scopes: &mut Scopes,
    userlist: Option<&str>,
) -> Result<Translation, Vec<String>> {
    let mut own = Translator::default();
    for entry in entries {
        own.entry(entry);
    }
    own.auth(userlist);
    own.reserve();
    own.tls();
    own.listeners(scopes)?;
    if own.setting_of("verbose").is_some_and(|level| level != "0") {
        own.made.file.set("log.level", json!("debug"));
    }
    Ok(own.made)
}

/// A client's database.
#[derive(Debug)]
struct Database {
    /// Where its servers are, as names to look for in what the operator said: with the port, and without.
    hosts: Vec<String>,
}

#[derive(Default)]
struct Translator {
    made: Translation,
    /// `[pgbouncer]`; of a key that stands twice the last one counts.
    settings: BTreeMap<String, String>,
    places: BTreeMap<String, Place>,
    databases: BTreeMap<String, Database>,
    sections_told: BTreeSet<String>,
}

impl Translator {
    fn entry(&mut self, entry: &Entry) {
        match entry.section.as_str() {
            "pgbouncer" => self.setting(entry),
            "databases" => self.database(entry),
            "users" => self.user(entry),
            "peers" => {
                if self.sections_told.insert(entry.section.clone()) {
                    let why = "routers have no numbers, and the store knows them";
                    self.made.notes.moot(&entry.place, "[peers]", why);
                }
            }
            other => {
                if self.sections_told.insert(other.to_owned()) {
                    let text = "the section is not known, and left out";
                    let key = format!("[{other}]");
                    self.made.notes.attention(Some(&entry.place), &key, text);
                }
            }
        }
    }

    fn setting(&mut self, entry: &Entry) {
        let Entry {
            place, key, value, ..
        } = entry;
        self.settings.insert(key.clone(), value.clone());
        self.places.insert(key.clone(), place.clone());
        let Translation { file, notes } = &mut self.made;
        match translated(SETTINGS, key, value) {
            Outcome::Value(path, value) => file.set(path, value),
            Outcome::Own | Outcome::Nothing => {}
            Outcome::Moot(why) => notes.moot(place, key, why),
            Outcome::Attention(text) => notes.attention(Some(place), key, &text),
        }
    }

    fn database(&mut self, entry: &Entry) {
        let Some((pairs, rules)) = self.rules(entry, DATABASE) else {
            return;
        };
        let value = |key: &str| {
            let found = pairs.iter().rev().find(|(name, _)| name == key);
            found.map(|(_, value)| value.clone())
        };
        let host = value("host").filter(|host| !host.is_empty());
        let port = value("port").unwrap_or_else(|| "5432".to_owned());
        // Without a host PgBouncer takes the Unix socket of its own machine.
        let hosts = host.unwrap_or_else(|| "localhost".to_owned());
        let hosts = hosts.split(',').map(str::trim);
        let database = Database {
            hosts: hosts
                .flat_map(|host| [format!("{host}:{port}"), host.to_owned()])
                .collect(),
        };
        self.databases.insert(entry.key.clone(), database);
        let names = ["databases", entry.key.as_str()];
        self.made.file.put(&names, Value::Object(rules));
    }

    fn user(&mut self, entry: &Entry) {
        let Some((_, rules)) = self.rules(entry, USER) else {
            return;
        };
        if !rules.is_empty() {
            let names = ["users", entry.key.as_str()];
            self.made.file.put(&names, Value::Object(rules));
        }
    }

    /// The pairs of an entry, and what becomes of them by its table.
    fn rules(
        &mut self,
        entry: &Entry,
        table: &[(&str, Meaning)],
    ) -> Option<(Pairs, Map<String, Value>)> {
        let place = Some(&entry.place);
        if entry.key.len() > LONGEST_NAME {
            let begins: String = entry.key.chars().take(SHOWN_OF_A_NAME).collect();
            let text = format!(
                "a name has {LONGEST_NAME} bytes at the most: it is left out, as nobody could ask for it"
            );
            self.made
                .notes
                .attention(place, &format!("{begins}..."), &text);
            return None;
        }
        let pairs = match pairs(&entry.value) {
            Ok(pairs) => pairs,
            Err(why) => {
                let text = format!("{why}: it is left out, as PgBouncer would refuse it");
                self.made.notes.attention(place, &entry.key, &text);
                return None;
            }
        };
        let mut rules = Map::new();
        for (key, value) in &pairs {
            let shown = format!("{} {key}", entry.key);
            match translated(table, key, value) {
                Outcome::Value(name, value) => drop(rules.insert(name.to_owned(), value)),
                Outcome::Own | Outcome::Nothing => {}
                Outcome::Moot(why) => self.made.notes.moot(&entry.place, &shown, why),
                Outcome::Attention(text) => self.made.notes.attention(place, &shown, &text),
            }
        }
        Some((pairs, rules))
    }

    fn attention(&mut self, key: &str, text: &str) {
        let place = self.places.get(key);
        self.made.notes.attention(place, key, text);
    }

    fn setting_of(&self, key: &str) -> Option<&str> {
        let value = self.settings.get(key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// `auth`: PgBouncer's default method is md5.
    fn auth(&mut self, userlist: Option<&str>) {
        let kind = self.setting_of("auth_type").unwrap_or("md5").to_owned();
        let instead = match kind.as_str() {
            "md5" | "scram-sha-256" | "trust" | "cert" | "hba" => None,
            "plain" => Some(
                "passwords are not asked for in the clear; scram-sha-256 is written, which the same clients can",
            ),
            "any" => Some(
                "clients log in to PostgreSQL as themselves; scram-sha-256 is written, put the users into auth.file",
            ),
            "ldap" | "pam" => Some(
                "neither LDAP nor PAM is asked; scram-sha-256 is written, put the users into auth.file",
            ),
            _ => Some("the method is not known; scram-sha-256 is written"),
        };
        if let Some(text) = instead {
            self.attention("auth_type", text);
        }
        let written = if instead.is_some() {
            "scram-sha-256"
        } else {
            &kind
        };
        self.made.file.set("auth.type", json!(written));
        let rules = self.setting_of("auth_hba_file").map(str::to_owned);
        match (kind.as_str(), rules) {
            ("hba", Some(rules)) => self.made.file.set("auth.hba_file", json!(rules)),
            ("hba", None) => {
                self.attention("auth_type", "hba needs auth_hba_file: write auth.hba_file")
            }
            (_, Some(_)) => self.attention(
                "auth_hba_file",
                "it is used with auth_type = hba only, as in PgBouncer: left out",
            ),
            (_, None) => {}
        }
        match (
            kind.as_str(),
            self.setting_of("auth_ident_file").map(str::to_owned),
        ) {
            ("hba", Some(maps)) => self.made.file.set("auth.ident_file", json!(maps)),
            (_, Some(_)) => {
                let text = "it is used with auth_type = hba only, as in PgBouncer: left out";
                self.attention("auth_ident_file", text);
            }
            (_, None) => {}
        }
        let looks_up = self.lookup();
        let file = userlist.or_else(|| self.setting_of("auth_file"));
        match file.map(str::to_owned) {
            Some(file) => self.made.file.set("auth.file", json!(file)),
            None if looks_up => {}
            None => self.attention(
                "auth_file",
                "no file of users is named, and the router needs one: make it from pg_authid (\"name\" \"verifier\" \
                 on each line) and name it behind the ini file",
            ),
        }
    }

    /// Users that are not in the file. Whether they are looked up.
    fn lookup(&mut self) -> bool {
        let keys = [
            ("auth_user", "auth.user"),
            ("auth_query", "auth.query"),
            ("auth_dbname", "auth.database"),
        ];
        let looks_up = self.setting_of("auth_user").is_some();
        for (key, path) in keys {
            let Some(value) = self.setting_of(key).map(str::to_owned) else {
                continue;
            };
            match (looks_up, self.places.get(key)) {
                (true, _) => self.made.file.set(path, json!(value)),
                (false, Some(place)) => {
                    let why = "without auth_user nobody is looked up, as in PgBouncer";
                    self.made.notes.moot(place, key, why);
                }
                (false, None) => {}
            }
        }
        if self.setting_of("auth_query").is_some() && looks_up {
            let text = "it is asked in auth.database (postgres if absent) for all databases, with search_path pg_catalog: \
                        its function must be there, and be named with its schema";
            self.attention("auth_query", text);
        }
        if self.setting_of("auth_dbname").is_some() && looks_up {
            let text =
                "auth.database is a name of PostgreSQL's, not one of [databases]: see that it is";
            self.attention("auth_dbname", text);
        }
        looks_up
    }

    /// In PgBouncer a `reserve_pool_timeout` of 0 switches the reserve off.
    fn reserve(&mut self) {
        let Some(time) = self.setting_of("reserve_pool_timeout").map(str::to_owned) else {
            return;
        };
        match seconds(&time) {
            Some(time) if time == "0s" => {
                self.made.file.set("pool.reserve_pool_size", json!(0));
                let text = "0 switches the reserve off: written as pool.reserve_pool_size: 0; a database's own \
                            reserve_pool_size must go, too";
                self.attention("reserve_pool_timeout", text);
            }
            Some(time) => self.made.file.set("pool.reserve_pool_timeout", json!(time)),
            None => self.attention("reserve_pool_timeout", NO_TIME),
        }
    }

    /// What the modes of TLS mean beside other keys.
    fn tls(&mut self) {
        let files = [
            "client_tls_cert_file",
            "client_tls_key_file",
            "client_tls_ca_file",
        ];
        let has_files = files.iter().any(|key| self.setting_of(key).is_some());
        if has_files && self.setting_of("client_tls_sslmode").is_none() {
            self.made.file.set("tls.client.mode", json!("disable"));
        }
        if self.setting_of("server_tls_sslmode") == Some("verify-full") {
            let text = "members are reached by the addresses of their conn_url: their certificates must name these";
            self.attention("server_tls_sslmode", text);
        }
    }

    /// One for each address and target: targets share no port, the second one gets the next port. Where there are several
    /// clusters, the listeners name none, and the databases do.
    fn listeners(&mut self, scopes: &mut Scopes) -> Result<(), Vec<String>> {
        let by_destination = self.destinations(scopes)?;
        let clusters: BTreeSet<&str> = by_destination.iter().map(|(own, _)| &*own.scope).collect();
        let scope = match clusters.len() {
            1 => clusters.first().map(|scope| (*scope).to_owned()),
            _ => None,
        };
        let mut by_target: Vec<(&'static str, Vec<&str>)> = Vec::new();
        for (destination, names_of) in &by_destination {
            let target = destination.target();
            let names = names_of.iter().map(String::as_str);
            match by_target.iter_mut().find(|(known, _)| *known == target) {
                Some((_, known)) => known.extend(names),
                None => by_target.push((target, names.collect())),
            }
            if scope.is_none() {
                for name in names_of {
                    let names = ["databases", name.as_str(), "scope"];
                    self.made.file.put(&names, json!(destination.scope));
                }
            }
        }
        // Stable: among equals the order of destinations stays.
        by_target.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
        self.ports(scope.as_deref(), &by_target);
        Ok(())
    }

    /// Writes the listeners of these targets, with the names of their databases.
    fn ports(&mut self, scope: Option<&str>, by_target: &[(&'static str, Vec<&str>)]) {
        let mode = self.setting_of("pool_mode").unwrap_or("session");
        let mode = mode.to_lowercase();
        let most = match self.setting_of("max_client_conn").map(str::parse::<u64>) {
            None => DEFAULT_MAX_CLIENT_CONN,
            Some(Ok(most)) => most.max(1),
            Some(Err(_)) => {
                self.attention("max_client_conn", NO_NUMBER);
                DEFAULT_MAX_CLIENT_CONN
            }
        };
        let port = match self.setting_of("listen_port").map(str::parse::<u16>) {
            None => DEFAULT_PORT,
            Some(Ok(port)) => port,
            Some(Err(_)) => {
                self.attention("listen_port", NO_NUMBER);
                DEFAULT_PORT
            }
        };
        let addresses = self.addresses();
        for (at, (target, names)) in by_target.iter().enumerate() {
            let at = u16::try_from(at).unwrap_or(u16::MAX);
            let own_port = port.saturating_add(at);
            for address in &addresses {
                let mut listener = json!({
                    "listen": SocketAddr::new(*address, own_port).to_string(),
                    "target": target,
                    "mode": mode,
                    "max_client_conn": most,
                });
                if let Some(scope) = scope {
                    listener["scope"] = json!(scope);
                }
                self.made.file.listener(listener);
            }
            if at > 0 {
                let text = format!(
                    "a listener leads to leaders or to replicas: clients of {} connect to port {own_port} ({target})",
                    names.join(", "),
                );
                self.attention("listen_port", &text);
            }
        }
        if addresses.len() * by_target.len() > 1 {
            self.made.file.set("pool.max_client_conn", json!(most));
        }
    }

    /// The databases by where they lead, those of most databases first.
    fn destinations(
        &mut self,
        scopes: &mut Scopes,
    ) -> Result<Vec<(Destination, Vec<String>)>, Vec<String>> {
        let mut found: BTreeMap<Destination, Vec<String>> = BTreeMap::new();
        let mut unknown: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, database) in &self.databases {
            match scopes.of(&database.hosts) {
                Some(destination) => found.entry(destination).or_default().push(name.clone()),
                None => {
                    let hosts = database.hosts.iter().step_by(2).cloned();
                    let hosts = hosts.collect::<Vec<_>>().join(",");
                    unknown.entry(hosts).or_default().push(name.clone());
                }
            }
        }
        if self.databases.is_empty() {
            let text =
                "no database is named, so PgBouncer would serve none; here every name is passed on";
            self.made.notes.attention(None, "[databases]", text);
            match scopes.of(&[]) {
                Some(destination) => drop(found.insert(destination, Vec::new())),
                None => drop(unknown.insert("the file".to_owned(), Vec::new())),
            }
        }
        if unknown.is_empty() {
            let mut found: Vec<_> = found.into_iter().collect();
            // Stable: among equals the order of names stays.
            found.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
            return Ok(found);
        }
        let each = unknown.into_iter().map(|(hosts, names)| {
            let names = names.join(", ");
            format!("which cluster is behind {hosts} ({names})?")
        });
        Err(each.collect())
    }

    /// Where to listen.
    fn addresses(&mut self) -> Vec<IpAddr> {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let Some(listen) = self.setting_of("listen_addr").map(str::to_owned) else {
            let text = "it is not there, so PgBouncer listens on a Unix socket alone; 127.0.0.1 is written";
            self.attention("listen_addr", text);
            return vec![local];
        };
        let mut addresses = Vec::new();
        for name in listen.split(',').map(str::trim) {
            let address = match name {
                "*" => {
                    let text = "* is written as 0.0.0.0; where IPv6 is used, write [::] for both";
                    self.attention("listen_addr", text);
                    Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
                }
                "localhost" => Some(local),
                other => other.parse().ok(),
            };
            match address {
                Some(address) if !addresses.contains(&address) => addresses.push(address),
                Some(_) => {}
                None => {
                    let text = format!("{name} is no IP address: write the one that it stands for");
                    self.attention("listen_addr", &text);
                }
            }
        }
        addresses
    }
}

const NO_NUMBER: &str = "the value is no number, and left out, as PgBouncer would refuse it";
const NO_TIME: &str =
    "the value is no number of seconds, and left out, as PgBouncer would refuse it";

/// What becomes of one key.
enum Outcome {
    Value(&'static str, Value),
    Own,
    Nothing,
    Moot(&'static str),
    Attention(String),
}

fn translated(table: &[(&str, Meaning)], key: &str, value: &str) -> Outcome {
    let attention = |text: &str| Outcome::Attention(text.to_owned());
    match meaning(table, key) {
        None => attention("PgBouncer 1.26 does not know it either: left out; is it misspelled?"),
        Some(Meaning::Own) => Outcome::Own,
        Some(Meaning::Moot(why)) => Outcome::Moot(why),
        Some(Meaning::Absent(default, _)) if value == default => Outcome::Nothing,
        Some(Meaning::Absent(_, instead)) => {
            Outcome::Attention(format!("is not available in this version: {instead}"))
        }
        // An empty statement to reset a server by is a choice; an empty name is none.
        Some(Meaning::Text(path)) if value.is_empty() && path != "pool.server_reset_query" => {
            Outcome::Nothing
        }
        Some(Meaning::Text(path)) => Outcome::Value(path, json!(value)),
        Some(Meaning::Number(path)) => match value.parse::<u64>() {
            Ok(number) => Outcome::Value(path, json!(number)),
            Err(_) => attention(NO_NUMBER),
        },
        Some(Meaning::Mode(path)) => Outcome::Value(path, json!(value.to_lowercase())),
        Some(Meaning::OwnTime(_)) if value == "-1" => Outcome::Nothing,
        Some(Meaning::Time(path) | Meaning::OwnTime(path)) => match seconds(value) {
            Some(time) => Outcome::Value(path, json!(time)),
            None => attention(NO_TIME),
        },
    }
}

/// PgBouncer's seconds, perhaps with a fraction, with a unit.
fn seconds(value: &str) -> Option<String> {
    let number: f64 = value.parse().ok()?;
    let is_whole = number.fract() == 0.0;
    match number.is_finite() && number >= 0.0 {
        true if is_whole => Some(format!("{number:.0}s")),
        true => Some(format!("{:.0}ms", number * 1000.0)),
        false => None,
    }
}
