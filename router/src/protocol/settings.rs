//! Settings of a session that move from server to server.

use std::collections::BTreeMap;

/// Settings that PostgreSQL reports whenever they change, and that a session may set: they are carried from
/// server to server where the server does report them. `search_path` is reported from PostgreSQL 18 on,
/// `default_transaction_read_only` from 14.
const TRACKED: [&str; 8] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "IntervalStyle",
    "search_path",
    "standard_conforming_strings",
    "TimeZone",
];

/// The reported spelling of a setting that is carried; `None` of another one.
pub fn tracked(name: &str) -> Option<&'static str> {
    TRACKED
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(name))
}

/// Settings that no version reports and that drivers and frameworks set when they connect. A server is asked for what
/// a session has made of them before it is given back, as for those above where it does not report them.
const ASKED: [&str; 6] = [
    "bytea_output",
    "client_min_messages",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "statement_timeout",
];

/// All of them, each with its bit in [`SettingsSeen`].
fn carried() -> impl Iterator<Item = (u16, &'static str)> {
    let names = TRACKED.into_iter().chain(ASKED);
    names.enumerate().map(|(at, name)| (1 << at, name))
}

/// Some of the settings that are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SettingsSeen(u16);

impl SettingsSeen {
    /// Adds one by its name, in any case. Whether it is carried.
    pub fn note(&mut self, name: &str) -> bool {
        let known = carried().find(|(_, known)| known.eq_ignore_ascii_case(name));
        self.0 |= known.map_or(0, |(bit, _)| bit);
        known.is_some()
    }

    /// Adds others.
    pub fn add(&mut self, others: SettingsSeen) {
        self.0 |= others.0;
    }

    /// Those of them of which this is so.
    pub fn only(self, is_so: impl Fn(&str) -> bool) -> SettingsSeen {
        let those = self.bits().filter(|(_, name)| is_so(name));
        SettingsSeen(those.fold(0, |all, (bit, _)| all | bit))
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.bits().map(|(_, name)| name)
    }

    fn bits(self) -> impl Iterator<Item = (u16, &'static str)> {
        carried().filter(move |(bit, _)| self.0 & bit != 0)
    }
}

/// Settings of a session, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Settings(BTreeMap<Box<str>, Box<str>>);

impl Settings {
    /// Those of a server's report that are carried.
    pub fn reported<'a>(report: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let carried =
            report.filter_map(|(name, value)| Some((tracked(name)?.into(), value.into())));
        Self(carried.collect())
    }

    /// Changes one. A setting that is not tracked keeps its name in lower case, as PostgreSQL knows it.
    pub fn set(&mut self, name: &str, value: &str) {
        let name = tracked(name).map_or_else(|| name.to_ascii_lowercase(), str::to_owned);
        self.0.insert(name.into(), value.into());
    }

    /// These, with what a server reports in the place of what they say of that.
    pub fn under<'a>(&self, report: impl Iterator<Item = (&'a str, &'a str)>) -> Settings {
        let mut own = self.clone();
        own.0.extend(Self::reported(report).0);
        own
    }

    /// One by its name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(AsRef::as_ref)
    }

    /// What PostgreSQL reports of these where a session had the others before.
    pub fn changed_from<'a>(
        &'a self,
        before: &'a Settings,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.0.iter().filter(|(name, _)| tracked(name).is_some());
        let changed = all.filter(|(name, value)| before.0.get(*name) != Some(*value));
        changed.map(|(name, value)| (&**name, &**value))
    }

    /// The query that turns a server with these settings into one with the wanted ones. `set_config` takes a
    /// value as the start-up packet does, whatever its form; NULL resets to what the session began with.
    pub fn change_to(&self, wanted: &Settings) -> String {
        let mut sql = String::new();
        let mut add = |name: &str, value: Option<&str>| {
            sql.push_str(if sql.is_empty() { "SELECT " } else { ", " });
            sql.push_str("pg_catalog.set_config(");
            quote(&mut sql, name);
            sql.push_str(", ");
            match value {
                Some(value) => quote(&mut sql, value),
                None => sql.push_str("NULL"),
            }
            sql.push_str(", false)");
        };
        for (name, value) in &wanted.0 {
            if self.0.get(name) != Some(value) {
                add(name, Some(value));
            }
        }
        for name in self.0.keys().filter(|name| !wanted.0.contains_key(*name)) {
            add(name, None);
        }
        sql
    }
}

/// A literal that means the same whatever `standard_conforming_strings` is.
fn quote(sql: &mut String, text: &str) {
    sql.push_str("E'");
    for letter in text.chars() {
        match letter {
            '\'' => sql.push_str("''"),
            '\\' => sql.push_str("\\\\"),
            other => sql.push(other),
        }
    }
    sql.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_reports_is_believed_before_what_it_was_given() {
        let mut given = Settings::default();
        given.set("TimeZone", "Asia/Tokyo");
        given.set("statement_timeout", "5s");
        let now = given.under([("TimeZone", "UTC"), ("server_version", "15")].into_iter());
        assert_eq!(now.value("TimeZone"), Some("UTC"));
        assert_eq!(now.value("statement_timeout"), Some("5s"));
        assert_eq!(now.value("server_version"), None);
    }

    #[test]
    fn a_server_is_changed_only_where_it_differs() {
        let report = [
            ("TimeZone", "UTC"),
            ("server_version", "15"),
            ("application_name", ""),
        ];
        let server = Settings::reported(report.into_iter());
        let mut client = server.clone();
        assert_eq!(server.change_to(&client), "");
        client.set("APPLICATION_NAME", "it's\\me");
        client.set("Work_Mem", "4MB");
        assert_eq!(
            server.change_to(&client),
            "SELECT pg_catalog.set_config(E'application_name', E'it''s\\\\me', false), \
             pg_catalog.set_config(E'work_mem', E'4MB', false)"
        );
        assert_eq!(
            client.change_to(&server),
            "SELECT pg_catalog.set_config(E'application_name', E'', false), \
             pg_catalog.set_config(E'work_mem', NULL, false)"
        );
    }
}
