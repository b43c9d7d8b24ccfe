//! libpq's password file, as libpq reads it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::Environment;

/// The bits of a file that others may read; such a file is not used.
const OTHERS: u32 = 0o077;

/// The password for a host, port, database and user, where the file has one.
pub(super) fn find(env: &Environment, wanted: [&str; 4]) -> Option<String> {
    let named = env.get("PGPASSFILE").map(PathBuf::from);
    let file = named.or_else(|| Some(Path::new(env.get("HOME")?).join(".pgpass")))?;
    let is_private = std::fs::metadata(&file).ok()?.mode() & OTHERS == 0;
    let text = std::fs::read_to_string(&file).ok()?;
    is_private.then(|| found(&text, wanted)).flatten()
}

/// The password of the first line that fits.
fn found(text: &str, wanted: [&str; 4]) -> Option<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(fields).find_map(|fields| {
        let mut pairs = fields.iter().zip(wanted);
        let fits = pairs.all(|(field, wanted)| field == "*" || field == wanted);
        fields.get(4).filter(|_| fits).cloned()
    })
}

/// The fields between colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields
                .iter_mut()
                .last()
                .into_iter()
                .for_each(|f| f.extend(chars.next())),
            c => fields.iter_mut().last().into_iter().for_each(|f| f.push(c)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "# a comment\nh:5432:d:other:no\nh:5432:*:u:one\\:two:three\n*:*:*:*:last\n";
        let find = |wanted| found(text, wanted);
        assert_eq!(
            find(["h", "5432", "d", "u"]).as_deref(),
            Some("one:two:three")
        );
        assert_eq!(find(["g", "5432", "d", "u"]).as_deref(), Some("last"));
        assert_eq!(found("h:5432:d:u", ["h", "5432", "d", "u"]), None);
    }
}
