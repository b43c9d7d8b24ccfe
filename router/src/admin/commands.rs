//! What an operator may say at the console: PgBouncer's words, read as PgBouncer reads them. A text is one command of a
//! few words; anything else is refused.

/// The longest command, bytes.
pub const MAX_COMMAND: usize = 2048;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SHOW`.
    Show(Show),
    /// `PAUSE`: of one database, or of all.
    Pause(Option<String>),
    /// `RESUME`.
    Resume(Option<String>),
    /// `DISABLE`.
    Disable(String),
    /// `ENABLE`.
    Enable(String),
    /// `RECONNECT`.
    Reconnect(Option<String>),
    /// `KILL`.
    Kill(Option<String>),
    /// `KILL_CLIENT`, by the number that `SHOW CLIENTS` has.
    KillClient(u32),
    /// `WAIT_CLOSE`.
    WaitClose(Option<String>),
    /// `RELOAD`.
    Reload,
    /// `SHUTDOWN`.
    Shutdown(Wait),
    /// `SET key = value`.
    Set {
        /// The key, in lower case.
        key: String,
        /// The value.
        value: String,
    },
    /// `SET` of something that drivers set at every server: it does nothing here.
    SetIgnored,
}

/// What a `SHUTDOWN` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    Nothing,
    /// Every server to be released.
    Servers,
    /// Every client to be gone.
    Clients,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the word after SHOW")]
pub enum Show {
    Help,
    Config,
    Databases,
    Pools,
    Clients,
    Servers,
    Users,
    Version,
    Peers,
    PeerPools,
    Sockets,
    ActiveSockets,
    Lists,
    Mem,
    State,
    DnsHosts,
    DnsZones,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    /// This router's own.
    Topology,
    /// The same.
    Routers,
    /// A setting of the session that drivers ask for: name and value.
    Setting(&'static str, &'static str),
}

/// What the session says of itself as PostgreSQL would; PgBouncer's values.
pub const SETTINGS: [(&str, &str); 5] = [
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
];

/// Settings that drivers give every server, and that mean nothing here.
const IGNORED: [&str; 7] = [
    "extra_float_digits",
    "client_encoding",
    "standard_conforming_strings",
    "datestyle",
    "timezone",
    "application_name",
    "statement_timeout",
];

/// Why a text is no command. The words are PgBouncer's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCommand {
    /// It is none.
    #[error("invalid command '{0}', use SHOW HELP;")]
    Invalid(String),
    /// It needs a database.
    #[error("a database is required")]
    NoDatabase,
    /// It needs the number of a client.
    #[error("invalid client pointer supplied")]
    NoClient,
}

impl Command {
    /// Reads a text.
    ///
    /// # Errors
    /// It is no command.
    pub fn parse(text: &str) -> Result<Self, NoCommand> {
        let invalid = || NoCommand::Invalid(text.to_owned());
        let words = words(text).ok_or_else(invalid)?;
        let Some((Word::Bare(verb), rest)) = words.split_first() else {
            return Err(invalid());
        };
        let verb = verb.to_ascii_uppercase();
        if verb == "SET" {
            return set(rest).ok_or_else(invalid);
        }
        let argument = match rest {
            [] => None,
            [Word::Bare(word) | Word::Name(word)] => Some(word.clone()),
            _ => return Err(invalid()),
        };
        Ok(match (verb.as_str(), argument) {
            ("SHOW", Some(what)) => Command::Show(Show::find(&what).ok_or_else(invalid)?),
            ("PAUSE", database) => Command::Pause(database),
            ("RESUME", database) => Command::Resume(database),
            ("DISABLE", Some(database)) => Command::Disable(database),
            ("ENABLE", Some(database)) => Command::Enable(database),
            ("DISABLE" | "ENABLE", None) => return Err(NoCommand::NoDatabase),
            ("RECONNECT", database) => Command::Reconnect(database),
            ("KILL", database) => Command::Kill(database),
            ("KILL_CLIENT", number) => Command::KillClient(client(number)?),
            ("WAIT_CLOSE", database) => Command::WaitClose(database),
            ("RELOAD", None) => Command::Reload,
            ("SHUTDOWN", None) => Command::Shutdown(Wait::Nothing),
            ("SHUTDOWN", Some(wait)) => match wait.to_ascii_uppercase().as_str() {
                "WAIT_FOR_SERVERS" => Command::Shutdown(Wait::Servers),
                "WAIT_FOR_CLIENTS" => Command::Shutdown(Wait::Clients),
                _ => return Err(invalid()),
            },
            _ => return Err(invalid()),
        })
    }

    /// Whether it changes nothing, so that those in `stats_users` may say it.
    pub fn only_looks(&self) -> bool {
        match self {
            Command::Show(_) | Command::SetIgnored => true,
            Command::Pause(_)
            | Command::Resume(_)
            | Command::Disable(_)
            | Command::Enable(_)
            | Command::Reconnect(_)
            | Command::Kill(_)
            | Command::KillClient(_)
            | Command::WaitClose(_)
            | Command::Reload
            | Command::Shutdown(_)
            | Command::Set { .. } => false,
        }
    }
}

impl Show {
    fn find(word: &str) -> Option<Self> {
        let setting = SETTINGS.iter();
        let mut setting = setting.filter(|(name, _)| name.eq_ignore_ascii_case(word));
        Some(match word.to_ascii_uppercase().as_str() {
            "HELP" => Show::Help,
            "CONFIG" => Show::Config,
            "DATABASES" => Show::Databases,
            "POOLS" => Show::Pools,
            "CLIENTS" => Show::Clients,
            "SERVERS" => Show::Servers,
            "USERS" => Show::Users,
            "VERSION" => Show::Version,
            "PEERS" => Show::Peers,
            "PEER_POOLS" => Show::PeerPools,
            "SOCKETS" => Show::Sockets,
            "ACTIVE_SOCKETS" => Show::ActiveSockets,
            "LISTS" => Show::Lists,
            "MEM" => Show::Mem,
            "STATE" => Show::State,
            "DNS_HOSTS" => Show::DnsHosts,
            "DNS_ZONES" => Show::DnsZones,
            "STATS" => Show::Stats,
            "STATS_TOTALS" => Show::StatsTotals,
            "STATS_AVERAGES" => Show::StatsAverages,
            "TOTALS" => Show::Totals,
            "TOPOLOGY" => Show::Topology,
            "ROUTERS" => Show::Routers,
            _ => {
                let (name, value) = setting.next()?;
                Show::Setting(name, value)
            }
        })
    }
}

/// A part of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// Letters, digits and what names have.
    Bare(String),
    /// In double quotes.
    Name(String),
    /// In single quotes.
    Value(String),
    /// `=`.
    Equals,
}

/// The words of a text that may end with one semicolon; `None` where something is no word.
fn words(text: &str) -> Option<Vec<Word>> {
    let text = text.trim();
    let mut rest = text.strip_suffix(';').unwrap_or(text).trim_end();
    let mut words = Vec::new();
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            '=' => (Word::Equals, &rest[1..]),
            '"' => {
                let (name, after) = quoted(rest, '"')?;
                (Word::Name(name), after)
            }
            '\'' => {
                let (value, after) = quoted(rest, '\'')?;
                (Word::Value(value), after)
            }
            _ => {
                let is_part = |letter: char| letter.is_alphanumeric() || "_-.$".contains(letter);
                let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
                if end == 0 {
                    return None;
                }
                (Word::Bare(rest[..end].to_owned()), &rest[end..])
            }
        };
        words.push(word);
        rest = after.trim_start();
    }
    Some(words)
}

/// What stands in quotes, of which two stand for one; and what follows.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix(quote)?;
    let mut content = String::new();
    loop {
        let (part, after) = rest.split_once(quote)?;
        content.push_str(part);
        match after.strip_prefix(quote) {
            Some(more) => {
                content.push(quote);
                rest = more;
            }
            None => return Some((content, after)),
        }
    }
}

fn set(words: &[Word]) -> Option<Command> {
    let (Word::Bare(key), sign, value) = (match words {
        [key, sign, value] => (key, sign, value),
        _ => return None,
    }) else {
        return None;
    };
    let is_sign = match sign {
        Word::Equals => true,
        Word::Bare(word) => word.eq_ignore_ascii_case("to"),
        Word::Name(_) | Word::Value(_) => false,
    };
    let value = match value {
        Word::Bare(value) | Word::Value(value) | Word::Name(value) => value.clone(),
        Word::Equals => return None,
    };
    let key = key.to_ascii_lowercase();
    if IGNORED.contains(&key.as_str()) {
        return is_sign.then_some(Command::SetIgnored);
    }
    is_sign.then_some(Command::Set { key, value })
}

fn client(number: Option<String>) -> Result<u32, NoCommand> {
    let number = number.and_then(|number| number.parse().ok());
    number.ok_or(NoCommand::NoClient)
}

#[cfg(test)]
mod tests;
