//! `DEALLOCATE name` in SQL, in a simple query or as an unnamed statement, where the name is one that the router keeps for its client. Pure.

use super::look::skip_blank;

/// What a server is asked in its place: it changes nothing, and PostgreSQL runs it, refuses it in a failed transaction
/// and skips it as it would the other. The client sees nothing of its answer but an error.
pub const STAND_IN: &[u8] = b"SHOW is_superuser\0";
/// What is asked where the name could be mistaken for one of the router's: PostgreSQL says that there is no such one.
pub const OF_UNKNOWN: &[u8] = b"DEALLOCATE trunkline_unknown\0";

/// In the extended protocol a statement of this name, made for it, is taken away in its place.
pub const STATEMENT_STAND_IN: &[u8] = b"trunkline_gone\0";
/// That is done by this.
pub const OF_STAND_IN: &[u8] = b"DEALLOCATE trunkline_gone\0";

/// The statement that a text takes away, by its name, if that is all it does.
pub fn deallocated(sql: &[u8]) -> Option<Vec<u8>> {
    let mut at = skip_blank(sql, 0)?;
    // Most texts begin with another letter.
    if sql[at] | 0x20 != b'd' {
        return None;
    }
    let mut words = Vec::new();
    while let Some(start) = skip_blank(sql, at).filter(|start| sql[*start] != b';') {
        let (word, end) = identifier(sql, start)?;
        at = end;
        words.push(word);
        if words.len() > 3 {
            return None;
        }
    }
    while let Some(end) = skip_blank(sql, at) {
        if sql[end] != b';' {
            return None;
        }
        at = end + 1;
    }
    let is = |word: &Identifier, keyword: &[u8]| !word.is_quoted && word.name == keyword;
    let name = match &words[..] {
        [what, name] if is(what, b"deallocate") => name,
        [what, how, name] if is(what, b"deallocate") && is(how, b"prepare") => name,
        _ => return None,
    };
    (!is(name, b"all")).then(|| name.name.clone())
}

/// A name as PostgreSQL knows it.
struct Identifier {
    name: Vec<u8>,
    is_quoted: bool,
}

/// The one that begins here, and where it ends.
fn identifier(sql: &[u8], start: usize) -> Option<(Identifier, usize)> {
    let mut name = Vec::new();
    if sql[start] == b'"' {
        let mut at = start + 1;
        loop {
            let length = memchr::memchr(b'"', &sql[at..])?;
            name.extend_from_slice(&sql[at..at + length]);
            at += length + 1;
            if sql.get(at) != Some(&b'"') {
                let is_quoted = true;
                return Some((Identifier { name, is_quoted }, at));
            }
            name.push(b'"');
            at += 1;
        }
    }
    let is_first = |letter: u8| letter.is_ascii_alphabetic() || letter == b'_' || letter >= 0x80;
    let is_next = |letter: u8| is_first(letter) || letter.is_ascii_digit() || letter == b'$';
    if !is_first(sql[start]) {
        return None;
    }
    let rest = &sql[start..];
    let length = rest.iter().position(|letter| !is_next(*letter));
    let end = start + length.unwrap_or(rest.len());
    name.extend(sql[start..end].to_ascii_lowercase());
    let is_quoted = false;
    Some((Identifier { name, is_quoted }, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_postgresql_reads_it() {
        for (sql, name) in [
            ("DEALLOCATE s1", "s1"),
            ("deallocate Prepare S1;", "s1"),
            ("/* a */ DEALLOCATE -- b\n \"S \"\"1\" ; ;", "S \"1"),
            ("DEALLOCATE prepare", "prepare"),
            ("DEALLOCATE \"all\"", "all"),
            ("DEALLOCATE PREPARE _pg3_0", "_pg3_0"),
        ] {
            assert_eq!(deallocated(sql.as_bytes()), Some(name.into()), "{sql}");
        }
    }

    #[test]
    fn what_does_more_or_something_else_is_left_to_postgresql() {
        for sql in [
            "",
            "DEALLOCATE",
            "DEALLOCATE ALL",
            "DEALLOCATE PREPARE ALL",
            "DEALLOCATE s1; SELECT 1",
            "SELECT 1; DEALLOCATE s1",
            "DEALLOCATE s1 s2",
            "DEALLOCATE s1.s2",
            "DEALLOCATE \"s1",
            "DEALLOCATE 1",
            "DEALLOCATE U&\"s1\"",
            "\"deallocate\" s1",
            "DELETE FROM s1",
        ] {
            assert_eq!(deallocated(sql.as_bytes()), None, "{sql}");
        }
    }
}
