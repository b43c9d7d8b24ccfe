//! `haproxy.cfg` as a router's file: its proxies in mode `tcp` that lead to PostgreSQL. Pure.

use std::collections::BTreeMap;

use serde_json::json;

use super::notes::{Notes, Place};
use super::router_file::Translation;
use super::scopes::{Destination, Scopes};

pub mod keys;
pub mod read;
mod role;

use keys::{Meaning, SERVER, meaning};
use read::{Line, Section};
use role::{Role, role};

/// PgBouncer's port, by which one is suspected behind HAProxy.
const PGBOUNCER: &str = ":6432";

/// Translates the sections of a file.
///
/// # Errors
/// What the operator has to say first: the cluster behind a proxy.
pub fn translate(sections: &[Section], scopes: &mut Scopes) -> Result<Translation, Vec<String>> {
    let mut own = Translator {
        proxies: proxies(sections),
        ..Translator::default()
    };
    own.notes(sections);
    let mut unknown = Vec::new();
    for at in 0..own.proxies.len() {
        own.proxy(at, scopes, &mut unknown);
    }
    match unknown.is_empty() {
        true => Ok(own.made),
        false => Err(unknown),
    }
}

/// `listen`, `frontend` or `backend`, with the lines that it takes over.
#[derive(Debug)]
struct Proxy<'f> {
    head: &'f Line,
    lines: &'f [Line],
    defaults: &'f [Line],
}

impl<'f> Proxy<'f> {
    fn name(&self) -> &'f str {
        self.head.word(1)
    }

    /// Its own lines, and then those of its defaults.
    fn all(&self) -> impl Iterator<Item = &'f Line> + Clone + use<'f> {
        self.lines.iter().chain(self.defaults)
    }

    fn value(&self, word: &str) -> Option<&'f str> {
        let found = self.all().find(|line| line.word(0) == word);
        found.map(|line| line.word(1))
    }

    fn is_tcp(&self) -> bool {
        self.value("mode").unwrap_or("tcp") == "tcp"
    }
}

fn proxies(sections: &[Section]) -> Vec<Proxy<'_>> {
    let mut latest: &[Line] = &[];
    let mut named: BTreeMap<&str, &[Line]> = BTreeMap::new();
    let mut proxies = Vec::new();
    for section in sections {
        let head = &section.head;
        match head.word(0) {
            "defaults" => {
                latest = &section.lines;
                named.insert(head.word(1), latest);
            }
            "listen" | "frontend" | "backend" => {
                let from = head.after("from").and_then(|name| named.get(name));
                proxies.push(Proxy {
                    head,
                    lines: &section.lines,
                    defaults: from.copied().unwrap_or(latest),
                });
            }
            _ => {}
        }
    }
    proxies
}

#[derive(Default)]
struct Translator<'f> {
    proxies: Vec<Proxy<'f>>,
    made: Translation,
    /// `maxconn` of `global`.
    most: Option<u64>,
    /// What `replicas` says already, and where that comes from.
    max_lag: Option<String>,
    fallback: Option<bool>,
}

impl<'f> Translator<'f> {
    /// Names every line without an equivalent, once.
    fn notes(&mut self, sections: &'f [Section]) {
        for section in sections {
            let head = &section.head;
            match head.word(0) {
                "global" => self.global(section),
                "defaults" => self.lines(&section.lines),
                "listen" | "frontend" | "backend" => {
                    let is_tcp = self.proxies.iter().any(|p| p.head == head && p.is_tcp());
                    if is_tcp {
                        self.lines(&section.lines);
                    }
                }
                _ => {
                    let why = "the router needs none: members are found in the store";
                    self.made.notes.moot(&head.place, &head.key(), why);
                }
            }
        }
    }

    fn global(&mut self, section: &Section) {
        for line in &section.lines {
            let notes = &mut self.made.notes;
            match line.word(0) {
                "maxconn" => self.most = line.word(1).parse().ok(),
                "stats" => {
                    let text = "there is no command socket; /topology and /metrics of http.listen tell what is";
                    notes.attention(Some(&line.place), &line.key(), text);
                }
                _ => {
                    let why = "the process is set by its service unit, and uses all cores";
                    notes.moot(&line.place, &line.key(), why);
                }
            }
        }
    }

    fn lines(&mut self, lines: &[Line]) {
        let notes = &mut self.made.notes;
        for line in lines {
            let first = line.word(0);
            if ["server", "default-server", "server-template"].contains(&first) {
                server(line, notes);
            }
            match meaning(first, line.word(1)) {
                Some(Meaning::Own) => {}
                Some(Meaning::Moot(why)) => notes.moot(&line.place, &line.key(), why),
                Some(Meaning::Absent(text)) => {
                    notes.attention(Some(&line.place), &line.key(), text);
                }
                None => {
                    let text = "it is not known to this command, and left out: does anything depend on it?";
                    notes.attention(Some(&line.place), &line.key(), text);
                }
            }
        }
    }

    /// The listeners of a proxy.
    fn proxy(&mut self, at: usize, scopes: &mut Scopes, unknown: &mut Vec<String>) {
        let proxy = &self.proxies[at];
        if proxy.head.word(0) == "backend" {
            return;
        }
        let place = &proxy.head.place;
        let key = proxy.head.key();
        let binds: Vec<&Line> = proxy.lines.iter().filter(|l| l.word(0) == "bind").collect();
        if !proxy.is_tcp() {
            return self.http(at, &binds);
        }
        let name = proxy.value("default_backend");
        let backend = name.and_then(|name| {
            let mut all = self.proxies.iter();
            all.find(|other| other.head.word(0) != "frontend" && other.name() == name)
        });
        let backend = backend.unwrap_or(proxy);
        let (role, names) = (role(backend.all()), names(proxy, backend));
        let most = proxy.value("maxconn").and_then(|most| most.parse().ok());
        let most: Option<u64> = most.or(self.most);
        let Some(role) = role else {
            let text = "whether it is for writes or for reads cannot be told, since no check asks for a role: left out; \
                        write its listener by hand, with target: primary or replicas";
            return self.made.notes.attention(Some(place), &key, text);
        };
        let Some(destination) = scopes.of(&names) else {
            unknown.push(format!("which cluster is behind {key}?"));
            return;
        };
        let destination = Destination {
            is_replicas: destination.is_replicas || role.is_replicas,
            ..destination
        };
        if let Some(text) = role.attention {
            self.made.notes.attention(Some(place), &key, text);
        }
        let place = place.clone();
        if destination.is_replicas {
            self.replicas(&role, &place, &key);
        }
        for bind in binds {
            self.bind(bind, &destination, most);
        }
    }

    /// A proxy in mode `http` is nothing for PostgreSQL, but its page of statistics has a successor.
    fn http(&mut self, at: usize, binds: &[&Line]) {
        let proxy = &self.proxies[at];
        let (place, key) = (Some(&proxy.head.place), proxy.head.key());
        let is_stats = proxy.lines.iter().any(|line| line.word(0) == "stats");
        let address = binds.iter().find_map(|bind| address(bind.word(1)).ok());
        match address.filter(|_| is_stats) {
            Some(address) => {
                self.made.file.set("http.listen", json!(address));
                let text = "its port is written as http.listen, with other pages: /, /health, /ready, /metrics, /topology; \
                            whoever reads HAProxy's own reads these";
                self.made.notes.attention(place, &key, text);
            }
            None => {
                let text = "it is in mode http, and nothing for PostgreSQL: left out";
                self.made.notes.attention(place, &key, text);
            }
        }
    }

    /// `replicas` stands in the file once, for all listeners.
    fn replicas(&mut self, role: &Role, place: &Place, key: &str) {
        let one = "the router has one for all listeners to replicas: see which is meant";
        if let Some(lag) = &role.max_lag {
            match &self.max_lag {
                None => {
                    self.made.file.set("replicas.max_lag", json!(lag));
                    self.max_lag = Some(lag.clone());
                }
                Some(other) if other == lag => {}
                Some(other) => {
                    let text = format!(
                        "lag={lag}, and another proxy has lag={other}, which is written as \
                                        replicas.max_lag: {one}"
                    );
                    self.made.notes.attention(Some(place), key, &text);
                }
            }
        }
        let falls_back = role.falls_back;
        if self.fallback.is_some_and(|other| other != falls_back) {
            let text = format!(
                "the leader serves reads here and not at another proxy; replicas.fallback: {one}"
            );
            self.made.notes.attention(Some(place), key, &text);
        } else if falls_back {
            self.made.file.set("replicas.fallback", json!("primary"));
        }
        self.fallback.get_or_insert(falls_back);
    }

    fn bind(&mut self, bind: &Line, destination: &Destination, most: Option<u64>) {
        let place = Some(&bind.place);
        let notes = &mut self.made.notes;
        let is_proxied = bind.has("accept-proxy");
        if is_proxied {
            let text = "HAProxy believes the PROXY header of anybody; so does what is written: narrow proxy_protocol_from";
            notes.attention(place, "bind accept-proxy", text);
        }
        if bind.has("ssl") {
            let text = "HAProxy ended TLS here; in tcp mode the client's TLS goes to PostgreSQL, and a pooled listener has tls.client";
            notes.attention(place, "bind ssl", text);
        }
        for part in bind.word(1).split(',') {
            let address = match address(part) {
                Ok(address) => address,
                Err(why) => {
                    notes.attention(place, &format!("bind {part}"), why);
                    continue;
                }
            };
            let mut listener = json!({
                "listen": address,
                "scope": destination.scope,
                "target": destination.target(),
                "mode": "tcp",
            });
            if let Some(most) = most.filter(|most| *most > 0) {
                listener["max_client_conn"] = json!(most);
            }
            if is_proxied {
                listener["proxy_protocol"] = json!("require");
                listener["proxy_protocol_from"] = json!(["0.0.0.0/0", "::/0"]);
            }
            self.made.file.listener(listener);
        }
    }
}

/// What the operator may have called it by.
fn names(proxy: &Proxy<'_>, backend: &Proxy<'_>) -> Vec<String> {
    let mut names = vec![proxy.name().to_owned(), backend.name().to_owned()];
    for line in backend.lines.iter().filter(|line| line.word(0) == "server") {
        let address = line.word(2);
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        names.extend([line.word(1), address, host].map(str::to_owned));
    }
    names
}

/// What a server's line says beside where it is.
fn server(line: &Line, notes: &mut Notes) {
    // Words of one reason are named together.
    let mut told: Vec<(Meaning, Vec<&str>)> = Vec::new();
    for word in line.words.iter().skip(1) {
        let found = SERVER.iter().find(|(name, _)| name == word);
        let Some((name, meaning)) = found else {
            continue;
        };
        match told.iter_mut().find(|(known, _)| known == meaning) {
            Some((_, names)) => names.push(name),
            None => told.push((*meaning, vec![name])),
        }
    }
    for (meaning, names) in told {
        let key = format!("{} {}", line.word(0), names.join(", "));
        match meaning {
            Meaning::Moot(why) => notes.moot(&line.place, &key, why),
            Meaning::Absent(text) => notes.attention(Some(&line.place), &key, text),
            Meaning::Own => {}
        }
    }
    if line.word(2).ends_with(PGBOUNCER) {
        let text = "this looks like a PgBouncer on the member: import its pgbouncer.ini, too, for pooled listeners; \
                    the router leads to PostgreSQL itself";
        notes.attention(Some(&line.place), &line.key(), text);
    }
}

/// An address of HAProxy's as the router takes it.
fn address(text: &str) -> Result<String, &'static str> {
    let text = ["ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@"]
        .into_iter()
        .find_map(|kind| text.strip_prefix(kind))
        .unwrap_or(text);
    if text.contains(['/', '@', '$']) {
        return Err("it is no IP address with a port: left out; write the one that it stands for");
    }
    let (host, port) = text.rsplit_once(':').ok_or("it has no port: left out")?;
    if port.parse::<u16>().is_err() {
        return Err("a listener has one port: left out; write one listener for each");
    }
    match host {
        "" | "*" => Ok(format!("0.0.0.0:{port}")),
        "::" => Ok(format!("[::]:{port}")),
        "localhost" => Ok(format!("127.0.0.1:{port}")),
        host => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            match bare.parse::<std::net::IpAddr>() {
                Ok(std::net::IpAddr::V4(address)) => Ok(format!("{address}:{port}")),
                Ok(std::net::IpAddr::V6(address)) => Ok(format!("[{address}]:{port}")),
                Err(_) => Err("it is no IP address: left out; write the one that it stands for"),
            }
        }
    }
}
