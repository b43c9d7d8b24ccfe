//! What a client sends before its first message: the start-up packet, requests for encryption, a cancel.

/// The longest start-up packet, bytes: PostgreSQL's own limit (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_PACKET_LENGTH: usize = 10_000;

/// The shortest packet: a length and a code.
const MIN_STARTUP_PACKET_LENGTH: usize = 8;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const PROTOCOL_3: u32 = 3;
/// The first byte of a TLS ClientHello, which PostgreSQL 17's clients may send without asking first.
const TLS_HANDSHAKE: u8 = 0x16;
/// The shortest cancel: length, code, process number and a key of four bytes.
const MIN_CANCEL_LENGTH: usize = 16;
/// The longest: protocol 3.2 allows keys of up to 256 bytes.
const MAX_CANCEL_LENGTH: usize = 12 + 256;

/// What the client asks for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// TLS, please.
    Ssl,
    /// GSS encryption, please.
    Gss,
    /// TLS begins at once, without asking (ALPN `postgresql`).
    DirectTls,
    /// A cancel request.
    Cancel,
    /// A start-up packet of protocol 3.
    Startup {
        /// The minor version asked for.
        minor: u16,
    },
    /// A start-up packet of a protocol that nobody speaks any more.
    OldProtocol {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
}

/// How far the first packet has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on: that many bytes in total are needed before more can be said.
    Need(usize),
    /// It is whole, and is this many bytes long. [`First::DirectTls`] has length 0: nothing was taken.
    Whole(First, usize),
}

/// The bytes cannot be the beginning of a PostgreSQL connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStartup {
    /// A length that no such packet has.
    #[error("the first packet claims a length of {0} bytes")]
    Length(u32),
    /// A code that means nothing.
    #[error("the first packet carries the unknown code {0}")]
    Code(u32),
    /// Its parameters are not pairs of texts.
    #[error("the start-up packet's parameters {0}")]
    Parameters(&'static str),
    /// `options` name what is no setting, in PostgreSQL's words.
    #[error("unrecognized configuration parameter \"{0}\"")]
    NoSetting(String),
    /// `replication` is neither on nor off, in PostgreSQL's words.
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
}

/// The two kinds of replication connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// To no database.
    Physical,
    /// To a database.
    Logical,
}

impl Replication {
    /// What a start-up packet calls it.
    pub fn name(self) -> &'static str {
        match self {
            Replication::Physical => "true",
            Replication::Logical => "database",
        }
    }

    /// As PostgreSQL reads it, or another meaning than PostgreSQL's would be judged by `auth.hba_file`.
    fn read(value: &str) -> Result<Option<Self>, NotStartup> {
        if value == "database" {
            return Ok(Some(Replication::Logical));
        }
        let is_on = boolean(value).ok_or_else(|| NotStartup::Replication(value.to_owned()))?;
        Ok(is_on.then_some(Replication::Physical))
    }
}

/// PostgreSQL's `parse_bool`: whole words and their beginnings, where one letter says which.
fn boolean(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    let is_on = value == "1" || begins("true", 1) || begins("yes", 1) || begins("on", 2);
    let is_off = value == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2);
    (is_on || is_off).then_some(is_on)
}

/// Whether a start-up packet's parameter of this name is a setting, and not who wants what.
pub fn is_setting(name: &str) -> bool {
    let others = ["user", "database", "replication", "options"];
    let is_other = others.iter().any(|other| other.eq_ignore_ascii_case(name));
    !is_other && !name.starts_with("_pq_.")
}

/// Reads the first packet, or as much of it as has come.
pub fn parse(bytes: &[u8]) -> Result<Progress, NotStartup> {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return Ok(Progress::Whole(First::DirectTls, 0));
    }
    let Some(length) = number(bytes, 0) else {
        return Ok(Progress::Need(MIN_STARTUP_PACKET_LENGTH));
    };
    let whole = usize::try_from(length).map_err(|_| NotStartup::Length(length))?;
    if !(MIN_STARTUP_PACKET_LENGTH..=MAX_STARTUP_PACKET_LENGTH).contains(&whole) {
        return Err(NotStartup::Length(length));
    }
    let Some(code) = number(bytes, 4) else {
        return Ok(Progress::Need(MIN_STARTUP_PACKET_LENGTH));
    };
    let first = match (code, whole) {
        (SSL_REQUEST, 8) => First::Ssl,
        (GSSENC_REQUEST, 8) => First::Gss,
        (CANCEL_REQUEST, MIN_CANCEL_LENGTH..=MAX_CANCEL_LENGTH) => First::Cancel,
        (SSL_REQUEST | GSSENC_REQUEST | CANCEL_REQUEST, _) => {
            return Err(NotStartup::Length(length));
        }
        (other, _) => {
            let (major, minor) = (other >> 16, (other & 0xFFFF) as u16);
            match major {
                PROTOCOL_3 => First::Startup { minor },
                1 | 2 => First::OldProtocol {
                    major: major as u16,
                    minor,
                },
                _ => return Err(NotStartup::Code(other)),
            }
        }
    };
    if bytes.len() < whole {
        return Ok(Progress::Need(whole));
    }
    Ok(Progress::Whole(first, whole))
}

/// The parameters of a start-up packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Who.
    pub user: String,
    /// Where; the user's name if the client did not say.
    pub database: String,
    /// The client wants a replication connection.
    pub replication: Option<Replication>,
    /// Settings by name, those of `options` first, as in PostgreSQL.
    pub settings: Vec<(String, String)>,
    /// Protocol options (`_pq_.`) that nobody here knows.
    pub unknown_options: Vec<String>,
}

impl Parameters {
    /// Whether PostgreSQL takes it for a replication connection to no database.
    pub fn is_physical_replication(&self) -> bool {
        self.replication == Some(Replication::Physical)
    }
}

/// Reads the parameters of a whole start-up packet.
pub fn parameters(packet: &[u8]) -> Result<Parameters, NotStartup> {
    let wrong = NotStartup::Parameters;
    let body = packet.get(8..).unwrap_or_default();
    // The last pair is followed by one more zero byte.
    let pairs = match body {
        [pairs @ .., 0] => pairs,
        _ => return Err(wrong("are not terminated")),
    };
    let mut read = Parameters::default();
    let mut given = Vec::new();
    let mut rest = pairs;
    while !rest.is_empty() {
        let mut next = || {
            let end = rest.iter().position(|b| *b == 0);
            let (text, after) = rest.split_at(end.ok_or(wrong("are not terminated"))?);
            rest = &after[1..];
            let text = std::str::from_utf8(text).map_err(|_| wrong("are not UTF-8"))?;
            Ok::<_, NotStartup>(text.to_owned())
        };
        let (name, value) = (next()?, next()?);
        match name.as_str() {
            "user" => read.user = value,
            "database" => read.database = value,
            "replication" => read.replication = Replication::read(&value)?,
            "options" => {
                let options = options(&value);
                let options = options.ok_or(wrong("hold options that are not -c name=value"))?;
                // In a server's start-up packet they would stand in the place of the router's own.
                if let Some((name, _)) = options.iter().find(|(name, _)| !is_setting(name)) {
                    return Err(NotStartup::NoSetting(name.clone()));
                }
                read.settings.extend(options);
            }
            _ if name.starts_with("_pq_.") => read.unknown_options.push(name),
            "" => return Err(wrong("hold one without a name")),
            _ => given.push((name, value)),
        }
    }
    read.settings.append(&mut given);
    if read.user.is_empty() {
        return Err(wrong("name no user"));
    }
    if read.database.is_empty() {
        read.database.clone_from(&read.user);
    }
    Ok(read)
}

/// The settings in a text of command-line options: `-c name=value`, `-cname=value`, `--name=value`. Spaces
/// separate, a backslash takes what follows it literally.
fn options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => words.last_mut()?.push(letters.next()?),
            letter if letter.is_ascii_whitespace() => words.push(String::new()),
            letter => words.last_mut()?.push(letter),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(long), _) => long.to_owned(),
            (None, Some("")) => words.next()?,
            (None, Some(short)) => short.to_owned(),
            (None, None) => return None,
        };
        let (name, value) = setting.split_once('=')?;
        if name.is_empty() {
            return None;
        }
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(settings)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(pairs: &str) -> Vec<u8> {
        let mut packet = u32::try_from(pairs.len() + 8)
            .unwrap()
            .to_be_bytes()
            .to_vec();
        packet.extend_from_slice(&[0, 3, 0, 0]);
        packet.extend_from_slice(pairs.as_bytes());
        packet
    }

    #[test]
    fn parameters_of_any_name_are_kept_in_order() {
        let read = parameters(&packet(
            "user\0app\0options\0-c geqo=off --search-path=a\\ b -cwork_mem=4MB\0application_name\0x\0_pq_.x\0\0\0",
        ))
        .unwrap();
        assert_eq!((read.user.as_str(), read.database.as_str()), ("app", "app"));
        let settings: Vec<_> = read
            .settings
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        assert_eq!(
            settings,
            [
                "geqo=off",
                "search_path=a b",
                "work_mem=4MB",
                "application_name=x"
            ]
        );
        assert_eq!(read.unknown_options, ["_pq_.x"]);
        let read = parameters(&packet("user\0a\0database\0d\0replication\0database\0\0")).unwrap();
        assert_eq!(read.replication, Some(Replication::Logical));
        assert!(!read.is_physical_replication() && read.database == "d");
    }

    #[test]
    fn replication_is_on_and_off_as_postgresql_reads_it() {
        let read = |value: &str| {
            let read = parameters(&packet(&format!("user\0a\0replication\0{value}\0\0")));
            read.map(|read| read.replication)
        };
        for on in ["1", "on", "ON", "t", "tr", "tru", "true", "y", "ye", "Yes"] {
            assert_eq!(read(on), Ok(Some(Replication::Physical)), "{on}");
        }
        for off in [
            "0", "of", "off", "OFF", "f", "fa", "fal", "fals", "false", "n", "no", "No",
        ] {
            assert_eq!(read(off), Ok(None), "{off}");
        }
        for neither in [
            "", "o", "O", "10", "00", "2", "tt", "truer", "noo", "databas", "Database", " on",
        ] {
            let refused = Err(NotStartup::Replication(neither.to_owned()));
            assert_eq!(read(neither), refused, "{neither}");
        }
    }

    #[test]
    fn options_hold_settings_only() {
        for option in [
            "-c user=a",
            "-c database=a",
            "--replication=false",
            "-coptions=a",
            "-c work_mem=4MB -c _pq_.a=b",
            "--_pq-.a=b",
            "-c USER=a",
        ] {
            let read = parameters(&packet(&format!("user\0a\0options\0{option}\0\0")));
            assert!(matches!(read, Err(NotStartup::NoSetting(_))), "{option}");
        }
    }

    #[test]
    fn parameters_that_are_no_pairs_of_texts_are_refused() {
        for pairs in [
            "",
            "\0",
            "user\0a\0",
            "user\0a",
            "user\0a\0database\0\0",
            "\0x\0user\0a\0\0",
            "user\0a\0options\0-x\0\0",
            "user\0a\0options\0-c\0\0",
            "user\0a\0options\0-c a\0\0",
            "user\0a\0options\0x\\\0\0",
        ] {
            assert!(parameters(&packet(pairs)).is_err(), "{pairs:?}");
        }
        assert!(parameters(b"\0\0\0\x08\0\x03\0\0").is_err());
        assert!(parameters(b"\0\0\0\x0e\0\x03\0\0u\xff\0a\0\0").is_err());
    }
}
