//! Two texts as a unified diff. Pure.

use similar::TextDiff;

use super::terminal::Terminal;

/// Lines shown around a change.
const CONTEXT: usize = 3;

/// What changes from one text to the other, in colours where these are seen.
pub(super) fn unified(old: &str, new: &str, terminal: &Terminal) -> String {
    let diff = TextDiff::from_lines(old, new);
    let text = diff
        .unified_diff()
        .context_radius(CONTEXT)
        .header("", "")
        .to_string();
    let coloured = text.lines().map(|line| {
        let colour = match line.as_bytes().first() {
            Some(b'-') => "31",
            Some(b'+') => "32",
            Some(b'@') => "36",
            Some(_) | None => return format!("{line}\n"),
        };
        format!("{}\n", terminal.coloured(line, colour))
    });
    coloured.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_what_diff_u_shows() {
        let old = "a: 1\nb: 2\nc: 3\nd: 4\ne: 5\nf: 6\n";
        let new = "a: 1\nb: 2\nc: 3\nd: 4\ne: 50\nf: 6\n";
        assert_eq!(
            unified(old, new, &Terminal::scripted(&[])),
            "--- \n+++ \n@@ -2,5 +2,5 @@\n b: 2\n c: 3\n d: 4\n-e: 5\n+e: 50\n f: 6\n"
        );
    }
}
