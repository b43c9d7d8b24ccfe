//! Text in YAML: plain where that reads back as the same text, else in quotes. The rules are those of PyYAML's
//! emitter and of the implicit types of YAML 1.1. Pure.

use std::fmt::Write;

use super::WIDTH;

/// Characters after which, at the beginning, nothing is plain text.
const INDICATORS: &str = "#,[]{}&*!|>'\"%@`";

/// How a text may be written.
struct Style {
    is_plain_in_block: bool,
    is_plain_in_flow: bool,
    is_single_quoted: bool,
    is_multiline: bool,
}

/// A key, or a value of one line.
pub(super) fn key(text: &str, in_flow: bool) -> String {
    let style = Style::of(text);
    let is_plain = match in_flow {
        true => style.is_plain_in_flow,
        false => style.is_plain_in_block,
    };
    if is_plain && !text.is_empty() && !is_another_type(text) {
        return text.to_owned();
    }
    match style.is_single_quoted && !style.is_multiline {
        true => format!("'{}'", text.replace('\'', "''")),
        false => double_quoted(text, 0, None),
    }
}

/// A value that begins at `column`; its further lines begin at `indent`.
pub(super) fn value(text: &str, column: usize, indent: usize) -> String {
    let style = Style::of(text);
    if style.is_plain_in_block && !text.is_empty() && !is_another_type(text) {
        return folded(text, column, indent, None);
    }
    match style.is_single_quoted {
        true => folded(text, column, indent, Some('\'')),
        false => double_quoted(text, column, Some(indent)),
    }
}

impl Style {
    fn of(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut block = text.starts_with("---") || text.starts_with("...");
        let mut flow = block;
        let (mut is_multiline, mut is_special) = (false, false);
        let (mut has_break_blank, mut has_blank_break) = (false, false);
        for (at, c) in chars.iter().copied().enumerate() {
            let before = at.checked_sub(1).map(|at| chars[at]);
            let is_after_blank = before.is_none_or(is_blank);
            let is_before_blank = chars.get(at + 1).is_none_or(|next| is_blank(*next));
            if at == 0 {
                let is_dash = c == '-' && is_before_blank;
                block |= INDICATORS.contains(c) || ("?:".contains(c) && is_before_blank) || is_dash;
                flow |= INDICATORS.contains(c) || "?:".contains(c) || is_dash;
            } else {
                let is_comment = c == '#' && is_after_blank;
                block |= (c == ':' && is_before_blank) || is_comment;
                flow |= ",?[]{}:".contains(c) || is_comment;
            }
            is_multiline |= is_break(c);
            // YAML 1.2 knows one line end; the others would come back with blanks behind them.
            is_special |= c != '\n' && (is_break(c) || !is_printable(c));
            has_break_blank |= c == ' ' && before.is_some_and(is_break);
            has_blank_break |= is_break(c) && before == Some(' ');
        }
        let is_edge = |c: Option<&char>| c.is_some_and(|c| *c == ' ' || is_break(*c));
        let has_edge = is_edge(chars.first()) || is_edge(chars.last());
        let is_foldable = !(has_break_blank || has_blank_break || is_special);
        let is_plain = is_foldable && !has_edge && !is_multiline;
        Self {
            is_plain_in_block: is_plain && !block,
            is_plain_in_flow: is_plain && !flow,
            is_single_quoted: is_foldable,
            is_multiline,
        }
    }
}

fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn is_blank(c: char) -> bool {
    matches!(c, '\0' | ' ' | '\t' | '\r') || is_break(c)
}

fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}'
        | '\u{10000}'..='\u{10fffe}')
        && c != '\u{feff}'
}

/// Plain or in single quotes: a single blank beyond the width becomes a line end, and a line end becomes two.
fn folded(text: &str, column: usize, indent: usize, quote: Option<char>) -> String {
    let mut out = String::new();
    out.extend(quote);
    let mut column = column + out.len();
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while let Some(c) = chars.get(at).copied() {
        let same = chars[at..].iter().take_while(|next| **next == c).count();
        if c == ' ' {
            let is_inside = at > 0 && at + same < chars.len();
            if same == 1 && column > WIDTH && is_inside {
                let _ = write!(out, "\n{:indent$}", "");
                column = indent;
            } else {
                out.push_str(&" ".repeat(same));
                column += same;
            }
            at += same;
        } else if is_break(c) {
            let breaks = chars[at..].iter().take_while(|next| is_break(**next));
            let breaks: Vec<char> = breaks.copied().collect();
            if c == '\n' {
                out.push('\n');
            }
            out.extend(&breaks);
            let _ = write!(out, "{:indent$}", "");
            column = indent;
            at += breaks.len();
        } else {
            out.push(c);
            if Some(c) == quote {
                out.push(c);
                column += 1;
            }
            column += 1;
            at += 1;
        }
    }
    out.extend(quote);
    out
}

fn double_quoted(text: &str, column: usize, indent: Option<usize>) -> String {
    let mut out = String::from('"');
    let mut column = column + 1;
    let chars: Vec<char> = text.chars().collect();
    for (at, c) in chars.iter().copied().enumerate() {
        let piece = escaped(c);
        let is_inside = at > 0 && at + 1 < chars.len();
        if let Some(indent) = indent
            && is_inside
            && (c == ' ' || piece.len() > 1)
            && column > WIDTH
        {
            let _ = write!(out, "\\\n{:indent$}", "");
            column = indent;
            if c == ' ' {
                out.push('\\');
                column += 1;
            }
        }
        column += piece.chars().count();
        out.push_str(&piece);
    }
    out.push('"');
    out
}

fn escaped(c: char) -> String {
    let named = match c {
        '\0' => '0',
        '\u{7}' => 'a',
        '\u{8}' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\u{b}' => 'v',
        '\u{c}' => 'f',
        '\r' => 'r',
        '\u{1b}' => 'e',
        '"' | '\\' => c,
        '\u{85}' => 'N',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' => {
            return c.to_string();
        }
        _ => {
            let number = u32::from(c);
            return match number {
                0..=0xff => format!("\\x{number:02X}"),
                0x100..=0xffff => format!("\\u{number:04X}"),
                _ => format!("\\U{number:08X}"),
            };
        }
    };
    format!("\\{named}")
}

/// Whether YAML 1.1 would read the plain text as something else than text.
fn is_another_type(text: &str) -> bool {
    const WORDS: [&str; 25] = [
        "yes", "Yes", "YES", "no", "No", "NO", "true", "True", "TRUE", "false", "False", "FALSE",
        "on", "On", "ON", "off", "Off", "OFF", "~", "null", "Null", "NULL", "<<", "=", "",
    ];
    WORDS.contains(&text)
        || is_integer(text)
        || is_float(text)
        || is_time(text)
        || is_another_type_to_the_reader(text)
}

/// Whether what reads it back here would, which goes by YAML 1.2: more is a number there, and words count in any case.
/// PyYAML leaves these as they are.
fn is_another_type_to_the_reader(text: &str) -> bool {
    const WORDS: [&str; 11] = [
        "y", "yes", "n", "no", "true", "false", "on", "off", "null", ".inf", ".nan",
    ];
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number = unsigned.replace('_', "").to_ascii_lowercase();
    let is_of_a_base = ["0x", "0o", "0b"].into_iter().any(|base| {
        let digits = number.strip_prefix(base);
        digits.is_some_and(|digits| is_all(digits, |c| c.is_ascii_hexdigit()))
    });
    // What has no digit and is a number to Rust (`inf`) is none in YAML.
    let is_decimal = number.contains(|c: char| c.is_ascii_digit()) && number.parse::<f64>().is_ok();
    is_of_a_base || is_decimal || WORDS.contains(&&*number)
}

fn is_all(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(allowed)
}

fn digits(c: char) -> bool {
    c.is_ascii_digit() || c == '_'
}

/// `:00` to `:59` once or more, as in `1:30:00`.
fn are_sixtieths(text: &str) -> bool {
    let mut parts = text.split(':');
    parts.next() == Some("")
        && text.len() > 1
        && parts.all(|part| match part.as_bytes() {
            [ones] => ones.is_ascii_digit(),
            [tens, ones] => (b'0'..=b'5').contains(tens) && ones.is_ascii_digit(),
            _ => false,
        })
}

fn is_integer(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(binary) = text.strip_prefix("0b") {
        return is_all(binary, |c| matches!(c, '0' | '1' | '_'));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return is_all(hex, |c| c.is_ascii_hexdigit() || c == '_');
    }
    if let Some(octal) = text.strip_prefix('0') {
        return octal.is_empty() || is_all(octal, |c| matches!(c, '0'..='7' | '_'));
    }
    let (whole, sixtieths) = text.split_at(text.find(':').unwrap_or(text.len()));
    whole.starts_with(|c: char| c.is_ascii_digit())
        && is_all(whole, digits)
        && (sixtieths.is_empty() || are_sixtieths(sixtieths))
}

fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (number, power) = match unsigned.split_once(['e', 'E']) {
        Some((number, power)) => (number, Some(power)),
        None => (unsigned, None),
    };
    let is_power = power.is_none_or(|power| {
        let digits = power.strip_prefix(['-', '+']);
        digits.is_some_and(|digits| is_all(digits, |c| c.is_ascii_digit()))
    });
    let Some((whole, part)) = number.split_once('.') else {
        return false;
    };
    let (whole, sixtieths) = whole.split_at(whole.find(':').unwrap_or(whole.len()));
    let is_whole = whole.starts_with(|c: char| c.is_ascii_digit()) && is_all(whole, digits);
    let is_part = part.chars().all(digits);
    match (whole.is_empty(), sixtieths.is_empty()) {
        (true, true) => {
            let begins = part.starts_with(|c: char| c.is_ascii_digit());
            unsigned.len() == text.len() && begins && is_part && is_power
        }
        (false, true) => is_whole && is_part && is_power,
        (_, false) => is_whole && are_sixtieths(sixtieths) && is_part && power.is_none(),
    }
}

/// A date, or a date with a time.
fn is_time(text: &str) -> bool {
    let mut rest = Rest(text);
    let is_date = rest.digits(4, 4)
        && rest.take('-')
        && rest.digits(1, 2)
        && rest.take('-')
        && rest.digits(1, 2);
    if !is_date {
        return false;
    }
    if rest.0.is_empty() {
        return text.len() == "2026-11-20".len();
    }
    let is_separated = rest.take('T') || rest.take('t') || rest.blanks() > 0;
    let is_time = is_separated
        && rest.digits(1, 2)
        && rest.take(':')
        && rest.digits(2, 2)
        && rest.take(':')
        && rest.digits(2, 2);
    if !is_time {
        return false;
    }
    if rest.take('.') {
        while rest.digits(1, 1) {}
    }
    let before = rest.0;
    rest.blanks();
    let has_offset = rest.take('Z')
        || ((rest.take('-') || rest.take('+'))
            && rest.digits(1, 2)
            && (!rest.take(':') || rest.digits(2, 2)));
    rest.0.is_empty() && (has_offset || before.is_empty())
}

/// What is left to read.
struct Rest<'t>(&'t str);

impl Rest<'_> {
    fn take(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn digits(&mut self, least: usize, most: usize) -> bool {
        let found = self.0.bytes().take(most).take_while(u8::is_ascii_digit);
        let count = found.count();
        if count >= least {
            self.0 = &self.0[count..];
        }
        count >= least
    }

    fn blanks(&mut self) -> usize {
        let rest = self.0.trim_start_matches([' ', '\t']);
        let count = self.0.len() - rest.len();
        self.0 = rest;
        count
    }
}
