//! One mapping of the configuration, read key by key. What is asked for is known; what is left over at
//! the end is warned of. Mistakes are collected, so that one run names them all.

use std::cell::RefCell;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::document::{Entry, Kind, Node, Origin, Scalar, Value};
use super::masked::without_credentials;
use super::{Mistake, Warning};

/// What was found while reading.
#[derive(Debug)]
pub struct Report {
    source_name: String,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Warning>>,
}

impl Report {
    /// Nothing yet, about a whole document.
    pub fn new(document: &Node) -> Self {
        let source_name = match &document.origin {
            Origin::File { path, .. } => path.to_string(),
            Origin::Environment(name) => name.to_string(),
            origin @ (Origin::Dynamic | Origin::Default) => origin.to_string(),
        };
        Self {
            source_name,
            mistakes: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Adds a mistake: the configuration will not be used.
    pub fn mistake(&self, mistake: Mistake) {
        let mut mistakes = self.mistakes.borrow_mut();
        // A value may be looked at more than once.
        if !mistakes.contains(&mistake) {
            mistakes.push(mistake);
        }
    }

    /// Whether a mistake is known at this place.
    fn has_mistake(&self, origin: &Origin, key: &str) -> bool {
        let place = (origin.to_string(), key.to_owned());
        let mistakes = self.mistakes.borrow();
        mistakes.iter().any(|known| known.place() == place)
    }

    /// Adds a warning.
    pub fn warn(&self, warning: Warning) {
        self.warnings.borrow_mut().push(warning);
    }

    /// The keys that nobody goes by, as far as is known by now.
    pub fn unread(&self) -> Vec<String> {
        let warnings = self.warnings.borrow();
        let keys = warnings.iter().filter_map(Warning::unread_key);
        keys.map(str::to_owned).collect()
    }

    /// All of it.
    pub fn into_parts(self) -> (Vec<Mistake>, Vec<Warning>) {
        (self.mistakes.into_inner(), self.warnings.into_inner())
    }
}

/// A host and a port. The host may be a list (`postgresql.listen` allows one).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Host name or address; IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Reads `host:port`, `[v6]:port` or, with a default, the host alone.
    pub fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                let port = match rest {
                    "" => default_port?,
                    rest => rest.strip_prefix(':')?.parse().ok()?,
                };
                (host, port)
            }
            None => match text.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => return None,
                Some((host, port)) => (host, port.parse().ok()?),
                None => (text, default_port?),
            },
        };
        let is_host =
            !host.is_empty() && !host.chars().any(|c| c.is_whitespace() || "/#".contains(c));
        (is_host && port != 0).then(|| Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Reads where to listen, as Patroni does: hosts with commas between, IPv6 addresses with or without brackets, and the
    /// port after the last colon.
    pub fn parse_listen(text: &str, default_port: u16) -> Option<Self> {
        let (hosts, port) = match text.rsplit_once(':') {
            Some((hosts, port)) if !port.ends_with(']') => (hosts, port.trim().parse().ok()?),
            Some(_) | None => (text, default_port),
        };
        let hosts = hosts.split(',').map(|host| listening_host(host.trim()));
        let hosts: Vec<&str> = hosts.collect::<Option<_>>()?;
        (port != 0).then(|| Self {
            host: hosts.join(","),
            port,
        })
    }

    /// The first of several hosts, with the port.
    pub fn first(&self) -> Self {
        Self {
            host: self.host.split(',').next().unwrap_or_default().to_owned(),
            port: self.port,
        }
    }

    /// Whether it stands for every address of the machine, which nobody can connect to.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host.as_str(), "*" | "0.0.0.0" | "::")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, host) in self.host.split(',').enumerate() {
            f.write_str(if at > 0 { "," } else { "" })?;
            match host.contains(':') {
                true => write!(f, "[{host}]")?,
                false => f.write_str(host)?,
            }
        }
        write!(f, ":{}", self.port)
    }
}

/// A host name, or an address without its brackets.
fn listening_host(text: &str) -> Option<&str> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let host = bare.unwrap_or(text);
    // Of a link-local address the interface is a part.
    let address = host.split('%').next().unwrap_or(host);
    let is_host = match host.contains(':') {
        true => address.parse::<Ipv6Addr>().is_ok(),
        false => {
            !host.is_empty()
                && !host
                    .chars()
                    .any(|c| c.is_whitespace() || "/#[]".contains(c))
        }
    };
    is_host.then_some(host)
}

/// One mapping.
pub struct Section<'a> {
    path: String,
    node: Option<&'a Node>,
    /// The keys that somebody asked for.
    known: RefCell<Vec<String>>,
    report: &'a Report,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub fn root(node: &'a Node, report: &'a Report) -> Self {
        let section = Self {
            path: String::new(),
            node: Some(node),
            known: RefCell::default(),
            report,
        };
        section.check_mapping();
        section
    }

    /// The mapping under `key`; an empty one if it is not there.
    pub fn section(&self, key: &str) -> Section<'a> {
        let section = Self {
            path: self.path_of(key),
            node: self.find(key),
            known: RefCell::default(),
            report: self.report,
        };
        section.check_mapping();
        section
    }

    fn check_mapping(&self) {
        if let Some(node) = self.node
            && !matches!(node.value, Value::Map(_))
            && !node.is_null()
        {
            let key = match self.path.as_str() {
                "" => "the file",
                path => path,
            };
            // Whoever looked first has the nearer words.
            if self.report.has_mistake(&node.origin, key) {
                return;
            }
            self.report.mistake(Mistake::Unusable {
                origin: node.origin.clone(),
                key: key.to_owned(),
                value: shown(node),
                expected: "a mapping (indented lines of the form \"key: value\")".to_owned(),
            });
        }
    }

    /// The full name of a key here, such as `postgresql.listen`.
    pub fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// Whether the mapping is there and holds something.
    pub fn is_present(&self) -> bool {
        self.node.is_some_and(|n| !n.is_null())
    }

    /// What is found in this section.
    pub fn report(&self) -> &'a Report {
        self.report
    }

    /// The value of `key`, `None` if absent or null. The key counts as known from here on.
    pub fn find(&self, key: &str) -> Option<&'a Node> {
        self.known.borrow_mut().push(key.to_owned());
        self.node?.child(key).filter(|n| !n.is_null())
    }

    /// The mapping itself, if it is there.
    pub fn node(&self) -> Option<&'a Node> {
        self.node
    }

    /// Every entry, known or not.
    pub fn values(&self) -> &'a [Entry] {
        match self.node.map(|n| &n.value) {
            Some(Value::Map(entries)) => entries,
            Some(Value::Scalar(_) | Value::List(_)) | None => &[],
        }
    }

    /// Every entry; all keys count as known.
    pub fn entries(&self) -> &'a [Entry] {
        let entries = self.values();
        let mut known = self.known.borrow_mut();
        known.extend(entries.iter().map(|e| e.key.clone()));
        entries
    }

    fn scalar(&self, key: &str, expected: &str) -> Option<(&'a Node, &'a Scalar)> {
        let node = self.find(key)?;
        match &node.value {
            Value::Scalar(scalar) => Some((node, scalar)),
            Value::List(_) | Value::Map(_) => {
                self.unusable(key, node, expected);
                None
            }
        }
    }

    /// Records that the value of `key` cannot be used.
    pub fn unusable(&self, key: &str, node: &Node, expected: &str) {
        let path = self.path_of(key);
        let value = if is_secret(&path) {
            "(a secret)".to_owned()
        } else {
            shown(node)
        };
        self.report.mistake(Mistake::Unusable {
            origin: node.origin.clone(),
            key: path,
            value,
            expected: expected.to_owned(),
        });
    }

    /// Records that `key` must be there.
    pub fn missing(&self, key: &str, write: &str) {
        self.report.mistake(Mistake::Missing {
            source_name: self.report.source_name.clone(),
            key: self.path_of(key),
            write: write.to_owned(),
        });
    }

    fn parsed<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&Scalar) -> Option<T>,
    ) -> Option<T> {
        let (node, scalar) = self.scalar(key, expected)?;
        let value = parse(scalar);
        if value.is_none() {
            self.unusable(key, node, expected);
        }
        value
    }

    /// A text; numbers and words such as `on` count as the text they were written as.
    pub fn text(&self, key: &str) -> Option<String> {
        self.parsed(key, "a text", |s| Some(s.text.clone()))
    }

    /// A text that is not shown anywhere.
    pub fn secret(&self, key: &str) -> Option<SecretString> {
        self.text(key).map(SecretString::from)
    }

    /// A path.
    pub fn file(&self, key: &str) -> Option<PathBuf> {
        self.parsed(key, "a path", |s| {
            (!s.text.is_empty()).then(|| PathBuf::from(&s.text))
        })
    }

    /// A yes or no.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        self.parsed(key, "true or false", |s| match s.kind {
            Kind::Boolean(b) => Some(b),
            Kind::Null | Kind::Integer(_) | Kind::Float(_) => None,
            Kind::Text => match s.text.to_ascii_lowercase().as_str() {
                "true" | "on" | "yes" => Some(true),
                "false" | "off" | "no" => Some(false),
                _ => None,
            },
        })
    }

    /// A whole number from `least` to `most`.
    pub fn integer(&self, key: &str, least: i64, most: i64) -> Option<i64> {
        let expected = match (least, most) {
            (least, i64::MAX) => format!("a whole number, at least {least}"),
            (i64::MIN, most) => format!("a whole number, at most {most}"),
            (least, most) => format!("a whole number from {least} to {most}"),
        };
        self.parsed(key, &expected, |s| {
            let number = match s.kind {
                Kind::Integer(i) => i,
                Kind::Null | Kind::Boolean(_) | Kind::Float(_) => return None,
                Kind::Text => s.text.parse().ok()?,
            };
            (least..=most).contains(&number).then_some(number)
        })
    }

    /// A number of seconds, at least `least`.
    pub fn seconds(&self, key: &str, least: i64) -> Option<Duration> {
        self.integer(key, least, i64::from(u32::MAX))
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs)
    }

    /// One word of a closed list.
    pub fn one_of<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let list: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.parsed(key, &format!("one of: {}", list.join(", ")), |s| {
            words
                .iter()
                .find(|(word, _)| word.eq_ignore_ascii_case(&s.text))
                .map(|(_, value)| *value)
        })
    }

    /// A host with a port.
    pub fn address(&self, key: &str, default_port: u16) -> Option<Address> {
        let expected =
            format!("host:port with a port from 1 to 65535, such as 10.0.0.1:{default_port}");
        let address = self.parsed(key, &expected, |s| {
            Address::parse(&s.text, Some(default_port))
        })?;
        self.as_written(key, address)
    }

    /// Where to listen: on one host, or on several.
    pub fn listen(&self, key: &str, default_port: u16, may_be_several: bool) -> Option<Address> {
        let several = match may_be_several {
            true => format!(", or several hosts such as 10.0.0.1,::1:{default_port}"),
            false => String::new(),
        };
        let expected = format!(
            "host:port with a port from 1 to 65535, such as 10.0.0.1:{default_port}{several}"
        );
        let address = self.parsed(key, &expected, |s| {
            let address = Address::parse_listen(&s.text, default_port);
            address.filter(|address| may_be_several || !address.host.contains(','))
        })?;
        self.as_written(key, address)
    }

    /// Warns of what looks like a variable.
    fn as_written(&self, key: &str, address: Address) -> Option<Address> {
        if address.host.contains('$')
            && let Some(node) = self.find(key)
        {
            self.report.warn(Warning::NotExpanded {
                origin: node.origin.clone(),
                key: self.path_of(key),
                value: shown(node),
            });
        }
        Some(address)
    }

    /// A list of texts; a single text counts as a list of one, or is split at commas if `split`.
    pub fn texts(&self, key: &str, split: bool) -> Option<Vec<String>> {
        let node = self.find(key)?;
        match &node.value {
            Value::Scalar(s) if split => Some(
                s.text
                    .split(',')
                    .map(|part| part.trim().to_owned())
                    .filter(|part| !part.is_empty())
                    .collect(),
            ),
            Value::Scalar(s) => Some(vec![s.text.clone()]),
            Value::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for item in items {
                    match &item.value {
                        Value::Scalar(s) => list.push(s.text.clone()),
                        Value::List(_) | Value::Map(_) => {
                            self.unusable(key, item, "a list of texts");
                        }
                    }
                }
                Some(list)
            }
            Value::Map(_) => {
                self.unusable(key, node, "a list of texts");
                None
            }
        }
    }

    /// A mapping from names to texts; YAML's true and false become PostgreSQL's `on` and `off`.
    pub fn parameters(&self, key: &str) -> Vec<(String, String)> {
        let section = self.section(key);
        let mut parameters = Vec::new();
        for entry in section.entries() {
            match &entry.node.value {
                Value::Scalar(s) => {
                    let text = match s.kind {
                        Kind::Null => continue,
                        Kind::Boolean(true) => "on".to_owned(),
                        Kind::Boolean(false) => "off".to_owned(),
                        Kind::Integer(_) | Kind::Float(_) | Kind::Text => s.text.clone(),
                    };
                    parameters.push((entry.key.clone(), text));
                }
                Value::List(_) | Value::Map(_) => {
                    section.unusable(&entry.key, &entry.node, "a single value");
                }
            }
        }
        parameters
    }

    /// Keys that are Patroni's and that this version does not act on: one warning for each that is set.
    pub fn not_acted_on(&self, keys: &[&str]) {
        for key in keys {
            if let Some(node) = self.find(key) {
                self.report.warn(Warning::NotActedOn {
                    origin: node.origin.clone(),
                    key: self.path_of(key),
                });
            }
        }
    }

    /// Keys that are known and change nothing here, each with the reason: one warning for each that is set.
    pub fn without_effect(&self, keys: &[(&str, &str)]) {
        for (key, why) in keys {
            if let Some(node) = self.find(key) {
                self.report.warn(Warning::WithoutEffect {
                    origin: node.origin.clone(),
                    key: self.path_of(key),
                    why: (*why).to_owned(),
                });
            }
        }
    }

    /// Refuses `key` if it is set.
    pub fn refuse(&self, key: &str, why: &str) {
        if let Some(node) = self.find(key) {
            self.report.mistake(Mistake::Refused {
                origin: node.origin.clone(),
                key: self.path_of(key),
                why: why.to_owned(),
            });
        }
    }

    /// Keys that are known and need no word.
    pub fn acknowledge(&self, keys: &[&str]) {
        let mut known = self.known.borrow_mut();
        known.extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Warns of every key that nobody asked for.
    pub fn end(&self) {
        let known = self.known.borrow();
        if let Some(Value::Map(entries)) = self.node.map(|n| &n.value) {
            for entry in entries.iter().filter(|e| !known.contains(&e.key)) {
                self.report.warn(Warning::UnknownKey {
                    origin: entry.origin.clone(),
                    key: self.path_of(&entry.key),
                    suggestion: nearest(&entry.key, known.iter().map(String::as_str))
                        .map(|key| self.path_of(key)),
                });
            }
        }
    }
}

/// Whether a value under this name must not be shown.
pub fn is_secret(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    last.ends_with("password")
        || last.ends_with("token")
        || ["passphrase", "auth", "auth_data", "set_acls"].contains(&last)
}

/// A value as a message shows it: short, on one line, without passwords.
pub fn shown(node: &Node) -> String {
    /// Longer values are cut in messages.
    const LONGEST: usize = 80;
    let text = match &node.value {
        Value::Scalar(s) => format!("\"{}\"", without_credentials(&s.text).escape_debug()),
        Value::List(items) => format!("a list of {}", items.len()),
        Value::Map(entries) => format!("a mapping of {}", entries.len()),
    };
    if text.chars().count() <= LONGEST {
        return text;
    }
    let mut cut: String = text.chars().take(LONGEST).collect();
    cut.push_str("…\"");
    cut
}

/// The known word nearest to `word`, if one is near enough to have been meant.
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let limit = (word.chars().count() / 3).clamp(1, 3);
    known
        .map(|k| (distance(word, k), k))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, k)| k)
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen_is_read_as_patroni_reads_it() {
        for (text, host, port) in [
            ("10.0.0.1:5433", "10.0.0.1", 5433),
            ("db1", "db1", 5432),
            ("*:5433", "*", 5433),
            ("127.0.0.1,10.0.0.1:5433", "127.0.0.1,10.0.0.1", 5433),
            ("127.0.0.1, 10.0.0.1", "127.0.0.1,10.0.0.1", 5432),
            ("127.0.0.1,::1:5452", "127.0.0.1,::1", 5452),
            ("127.0.0.1,[::1]:5452", "127.0.0.1,::1", 5452),
            ("[::1], 127.0.0.1:5452", "::1,127.0.0.1", 5452),
            ("::1:8018", "::1", 8018),
            ("[::1]:8018", "::1", 8018),
            ("[::1]", "::1", 5432),
            (":::5432", "::", 5432),
            ("fe80::1%eth0:5432", "fe80::1%eth0", 5432),
            ("0:0:0:0:0:0:0:0:5400", "0:0:0:0:0:0:0:0", 5400),
        ] {
            let expected = Address {
                host: host.to_owned(),
                port,
            };
            assert_eq!(Address::parse_listen(text, 5432), Some(expected), "{text}");
        }
        for text in [
            "",
            "::1",
            ":5432",
            "a,:5432",
            "a b:1",
            "h:0",
            "h:70000",
            "a:b:1",
            "[h:1",
            "http://h:1",
        ] {
            assert_eq!(Address::parse_listen(text, 5432), None, "{text}");
        }
    }

    #[test]
    fn several_hosts_are_shown_each_by_itself() {
        let address = Address {
            host: "127.0.0.1,::1".to_owned(),
            port: 5432,
        };
        assert_eq!(address.to_string(), "127.0.0.1,[::1]:5432");
        assert_eq!(address.first().to_string(), "127.0.0.1:5432");
    }
}
