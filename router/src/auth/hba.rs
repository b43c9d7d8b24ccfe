//! Who may log in from where, and how: PostgreSQL's `pg_hba.conf`, as far as PgBouncer reads it.
//!
//! The first rule that fits decides. What a line says and is not understood is a mistake of the file, never a line
//! that is left out: it could be the one that rejects.

use std::net::IpAddr;

use crate::auth::Method;
use crate::config::Network;

/// The rules of a file, in their order.
#[derive(Debug, Default)]
pub struct Hba {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    connection: Connection,
    databases: Vec<Name>,
    users: Vec<Name>,
    /// Absent: from anywhere.
    from: Option<Network>,
    verdict: Verdict,
    /// The map by which a certificate's name stands for a user.
    map: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    /// A Unix socket: the router has none, and no client fits.
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

#[derive(Debug)]
enum Name {
    All,
    /// The database of the user's own name.
    SameUser,
    /// Physical replication.
    Replication,
    Exactly(String),
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not at all.
    Reject,
    /// If the client proves who it is in this way.
    By(Method),
}

/// Who wants to log in.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Where it is.
    pub address: IpAddr,
    /// Whether it is under TLS.
    pub is_encrypted: bool,
    /// Where it wants to; none is physical replication, which only the word `replication` fits.
    pub database: Option<&'a str>,
    /// Who it says it is.
    pub user: &'a str,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadRule {
    /// Its number, from one.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl Hba {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Every line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, Vec<BadRule>> {
        let mut own = Self::default();
        let mut mistakes = Vec::new();
        for (number, text) in lines(text) {
            match rule(&text) {
                Ok(None) => {}
                Ok(Some(rule)) => own.rules.push(rule),
                Err(why) => mistakes.push(BadRule { line: number, why }),
            }
        }
        match mistakes.is_empty() {
            true => Ok(own),
            false => Err(mistakes),
        }
    }

    /// What the first rule that fits says; `None` if none does.
    pub fn verdict(&self, asking: &Asking<'_>) -> Option<Verdict> {
        self.first(asking).map(|rule| rule.verdict)
    }

    /// The map of that rule, if it has one.
    pub fn map(&self, asking: &Asking<'_>) -> Option<&str> {
        self.first(asking)?.map.as_deref()
    }

    fn first(&self, asking: &Asking<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(asking))
    }

    /// The maps that rules name.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter_map(|rule| rule.map.as_deref())
    }

    /// Whether a rule lets clients in by this method.
    pub fn uses(&self, method: Method) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.verdict == Verdict::By(method))
    }
}

impl Rule {
    fn fits(&self, asking: &Asking<'_>) -> bool {
        let is_so_connected = match self.connection {
            Connection::Local => false,
            Connection::Host => true,
            Connection::HostSsl => asking.is_encrypted,
            Connection::HostNoSsl => !asking.is_encrypted,
        };
        let is = |names: &[Name], own: Option<&str>| {
            names.iter().any(|name| match name {
                Name::All => own.is_some(),
                Name::SameUser => asking.database == Some(asking.user),
                Name::Replication => own.is_none(),
                Name::Exactly(name) => Some(name.as_str()) == own,
            })
        };
        is_so_connected
            && self.from.is_none_or(|from| from.contains(asking.address))
            && is(&self.databases, asking.database)
            && is(&self.users, Some(asking.user))
    }
}

/// A word of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    /// It begins with a quote: then it is no keyword.
    pub(super) is_quoted: bool,
}

impl Word {
    pub(super) fn is(&self, keyword: &str) -> bool {
        !self.is_quoted && self.text == keyword
    }
}

/// The rule of a line; none on one that is empty.
fn rule(line: &str) -> Result<Option<Rule>, String> {
    let mut fields = fields(line)?.into_iter();
    let Some(kind) = fields.next() else {
        return Ok(None);
    };
    let connection = connection(&one(kind, "kind of connection")?)?;
    let mut next = |what: &str| fields.next().ok_or(format!("the {what} is missing"));
    let databases = names(next("database")?, true)?;
    let users = names(next("user")?, false)?;
    let from = match connection {
        Connection::Local => None,
        Connection::Host | Connection::HostSsl | Connection::HostNoSsl => {
            let address = one(next("address")?, "address")?;
            match network(&address)? {
                From::Whole(from) => from,
                From::NeedsMask(address) => {
                    let mask = one(next("address's mask")?, "mask")?;
                    Some(masked(address, &mask)?)
                }
            }
        }
    };
    let verdict = verdict(&one(next("method")?, "method")?, connection)?;
    let mut map = None;
    for option in fields {
        let option = one(option, "value of an option")?.text;
        map = match option.strip_prefix("map=") {
            Some(name) if verdict == Verdict::By(Method::Cert) => Some(name.to_owned()),
            Some(_) => return Err("map is for the method cert".to_owned()),
            None => {
                return Err(format!(
                    "the option {option} is not available: map is, with the method cert"
                ));
            }
        };
    }
    Ok(Some(Rule {
        connection,
        databases,
        users,
        from,
        verdict,
        map,
    }))
}

/// The lines of a file with the number of each, from one. As PostgreSQL: a backslash at its end joins a line with the
/// next.
pub(super) fn lines(text: &str) -> Vec<(usize, String)> {
    let mut joined = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, first)) = lines.next() {
        let mut whole = first.to_owned();
        while let Some(begun) = whole.strip_suffix('\\') {
            let next = lines.next().map_or("", |(_, next)| next);
            whole = format!("{begun}{next}");
        }
        joined.push((at + 1, whole));
    }
    joined
}

fn one(mut field: Vec<Word>, what: &str) -> Result<Word, String> {
    match (field.pop(), field.is_empty()) {
        (Some(word), true) => Ok(word),
        (Some(_) | None, _) => Err(format!("more than one {what}")),
    }
}

fn connection(word: &Word) -> Result<Connection, String> {
    Ok(match word.text.as_str() {
        "local" => Connection::Local,
        "host" => Connection::Host,
        "hostssl" => Connection::HostSsl,
        "hostnossl" => Connection::HostNoSsl,
        other => {
            return Err(format!(
                "{other} is not available: local, host, hostssl or hostnossl begin a line"
            ));
        }
    })
}

fn names(field: Vec<Word>, are_databases: bool) -> Result<Vec<Name>, String> {
    let name = |word: Word| {
        let refused = |why: &str| Err(format!("{} is not available: {why}", word.text));
        if word.is("all") {
            return Ok(Name::All);
        }
        match (are_databases, word.text.as_str(), word.is_quoted) {
            (true, "sameuser", false) => return Ok(Name::SameUser),
            (true, "replication", false) => return Ok(Name::Replication),
            (true, "samerole" | "samegroup", false) => {
                return refused("the router knows no membership in roles");
            }
            _ => {}
        }
        match (word.text.chars().next(), word.is_quoted) {
            (Some('@'), false) => refused("names are not read from other files; write them here"),
            (Some('+'), false) if !are_databases => {
                refused("the router knows no membership in roles")
            }
            (Some('/'), _) => refused("regular expressions are not matched"),
            _ => Ok(Name::Exactly(word.text)),
        }
    };
    field.into_iter().map(name).collect()
}

enum From {
    Whole(Option<Network>),
    /// An address whose mask is the next word.
    NeedsMask(IpAddr),
}

fn network(word: &Word) -> Result<From, String> {
    if word.is("all") {
        return Ok(From::Whole(None));
    }
    let text = word.text.as_str();
    match (text.parse::<IpAddr>(), text.contains('/')) {
        (Ok(address), _) => Ok(From::NeedsMask(address)),
        (Err(_), true) => match Network::parse(text) {
            Some(network) => Ok(From::Whole(Some(network))),
            None => Err(format!("{text} is no network, such as 10.0.0.0/8")),
        },
        (Err(_), false) => Err(format!(
            "{text} is not available: an address is a network such as 10.0.0.0/8, an address and a mask, or all"
        )),
    }
}

/// A network by an address and a mask such as `255.255.0.0`.
fn masked(address: IpAddr, mask: &Word) -> Result<Network, String> {
    let wrong = || format!("{} is no mask of that address", mask.text);
    let bits = match (address, mask.text.parse::<IpAddr>()) {
        (IpAddr::V4(_), Ok(IpAddr::V4(mask))) => {
            let bits = u32::from(mask);
            (bits.leading_ones() == bits.count_ones()).then_some(bits.leading_ones())
        }
        (IpAddr::V6(_), Ok(IpAddr::V6(mask))) => {
            let bits = u128::from(mask);
            (bits.leading_ones() == bits.count_ones()).then_some(bits.leading_ones())
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
    };
    let bits = bits.ok_or_else(wrong)?;
    Network::parse(&format!("{address}/{bits}")).ok_or_else(wrong)
}

fn verdict(word: &Word, connection: Connection) -> Result<Verdict, String> {
    Ok(match word.text.as_str() {
        "reject" => Verdict::Reject,
        "trust" => Verdict::By(Method::Trust),
        "md5" => Verdict::By(Method::Md5),
        "scram-sha-256" => Verdict::By(Method::ScramSha256),
        "cert" if connection == Connection::HostSsl => Verdict::By(Method::Cert),
        "cert" => return Err("cert is for hostssl: without TLS there is no certificate".to_owned()),
        "password" => {
            return Err(
                "password is not available: it would go over the wire as it is; use scram-sha-256"
                    .to_owned(),
            );
        }
        other => {
            return Err(format!(
                "the method {other} is not available: trust, reject, md5, scram-sha-256 and cert are"
            ));
        }
    })
}

/// The fields of a line, each a list of words. As PostgreSQL splits them: blanks separate fields, a comma that ends
/// a word goes on with the list, quotes take everything, `#` begins a comment.
pub(super) fn fields(line: &str) -> Result<Vec<Vec<Word>>, String> {
    let mut fields: Vec<Vec<Word>> = Vec::new();
    let mut goes_on = false;
    let mut rest = line.chars().peekable();
    loop {
        while rest
            .next_if(|c| matches!(c, ' ' | '\t' | '\r' | ','))
            .is_some()
        {}
        if matches!(rest.peek(), None | Some('#')) {
            return Ok(fields);
        }
        let mut word = Word {
            text: String::new(),
            is_quoted: rest.peek() == Some(&'"'),
        };
        let mut is_inside = false;
        let mut ends_with_comma = false;
        while let Some(letter) =
            rest.next_if(|c| is_inside || !matches!(c, ' ' | '\t' | '\r' | '#'))
        {
            match letter {
                '"' if is_inside && rest.next_if_eq(&'"').is_some() => word.text.push('"'),
                '"' => is_inside = !is_inside,
                ',' if !is_inside => {
                    ends_with_comma = true;
                    break;
                }
                other => word.text.push(other),
            }
        }
        if is_inside {
            return Err("a quote is not closed".to_owned());
        }
        match fields.last_mut().filter(|_| goes_on) {
            Some(list) => list.push(word),
            None => fields.push(vec![word]),
        }
        goes_on = ends_with_comma;
    }
}

#[cfg(test)]
mod tests;
