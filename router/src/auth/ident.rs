//! Whose certificates are good for which users: PostgreSQL's `pg_ident.conf`, as far as PgBouncer reads it.
//!
//! A line is the name of a map, the name in the certificate, and the user. What is not understood is a mistake of the file.

use crate::auth::hba::{BadRule, Word, fields, lines};

/// The lines of a file.
#[derive(Debug, Default)]
pub struct Ident {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    map: String,
    certificate: String,
    /// Absent: any.
    user: Option<String>,
}

impl Ident {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Every line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, Vec<BadRule>> {
        let mut own = Self::default();
        let mut mistakes = Vec::new();
        for (number, text) in lines(text) {
            match line(&text) {
                Ok(None) => {}
                Ok(Some(line)) => own.lines.push(line),
                Err(why) => mistakes.push(BadRule { line: number, why }),
            }
        }
        match mistakes.is_empty() {
            true => Ok(own),
            false => Err(mistakes),
        }
    }

    /// Whether there is a map of this name.
    pub fn has(&self, map: &str) -> bool {
        self.lines.iter().any(|line| line.map == map)
    }

    /// Whether by this map who shows a certificate of this name may be this user.
    pub fn allows(&self, map: &str, certificate: &str, user: &str) -> bool {
        self.lines.iter().any(|line| {
            let is_user = line.user.as_ref().is_none_or(|own| own == user);
            line.map == map && line.certificate == certificate && is_user
        })
    }
}

fn line(text: &str) -> Result<Option<Line>, String> {
    let mut words = Vec::new();
    for field in fields(text)? {
        let mut field = field.into_iter();
        match (field.next(), field.next()) {
            (Some(word), None) => words.push(word),
            (Some(_) | None, _) => return Err("a list where one name belongs".to_owned()),
        }
    }
    let words: [Word; 3] = match words.try_into() {
        Ok(words) => words,
        Err(words) if words.is_empty() => return Ok(None),
        Err(_) => {
            return Err("a line is a map, the name in the certificate, and a user".to_owned());
        }
    };
    let [map, certificate, user] = words;
    for word in [&certificate, &user] {
        if word.text.starts_with('/') {
            return Err(format!(
                "{} is not available: regular expressions are not matched",
                word.text
            ));
        }
        if word.text.starts_with('+') && !word.is_quoted {
            return Err(format!(
                "{} is not available: the router knows no membership in roles",
                word.text
            ));
        }
    }
    Ok(Some(Line {
        map: map.text,
        certificate: certificate.text,
        user: (!user.is("all")).then_some(user.text),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_names_whose_certificate_is_good_for_whom() {
        let text = "# maps\n\nops  \"Jane Doe\"  admin\nops jane all # any\napps\tweb app\nops eve \"all\"\n";
        let ident = Ident::parse(text).unwrap();
        for (map, certificate, user, is_allowed) in [
            ("ops", "Jane Doe", "admin", true),
            ("ops", "Jane Doe", "app", false),
            ("ops", "jane", "app", true),
            ("apps", "web", "app", true),
            ("apps", "web", "admin", false),
            ("ops", "web", "app", false),
            // In quotes it is a name.
            ("ops", "eve", "app", false),
            ("ops", "eve", "all", true),
            ("none", "web", "app", false),
        ] {
            let told = ident.allows(map, certificate, user);
            assert_eq!(told, is_allowed, "{map} {certificate} {user}");
        }
        assert!(ident.has("ops") && !ident.has("none"));
    }

    #[test]
    fn every_line_that_is_not_understood_is_named() {
        let text = "ops jane\nops /^(.*)$ app\nops a,b app\nops jane +admins\nops jane admin more\nops \"jane admin\n";
        let bad = Ident::parse(text).unwrap_err();
        let numbers: Vec<usize> = bad.iter().map(|bad| bad.line).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    }
}
