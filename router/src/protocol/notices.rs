//! What a server says beside its answers, as far as it changes what they mean.

/// The last field of a notice, with its end: the function that says it. No setting translates it.
const WAITS_FOR_STANDBYS: &[u8] = b"\0RSyncRepWaitForLSN\0\0";

/// The field of its SQLSTATE. Where an administrator ends the connection as well the code is another one, and no answer
/// follows.
const WARNING: &[u8] = b"\0C01000\0";

/// Whether the body of a NoticeResponse says that a commit is no longer waited for: somebody cancelled its wait for
/// synchronous standbys (`SyncRepWaitForLSN` in PostgreSQL's `syncrep.c`). What follows says that it is committed.
pub fn is_cancelled_wait(body: &[u8]) -> bool {
    body.ends_with(WAITS_FOR_STANDBYS) && memchr::memmem::find(body, WARNING).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_wait_is_known_in_every_language_and_by_nothing_that_a_client_can_say() {
        let notice = |code: &str, message: &str, routine: &str| {
            format!(
                "SWARNUNG\0VWARNING\0C{code}\0M{message}\0DSchon best\u{e4}tigt.\0Fsyncrep.c\0L308\0R{routine}\0\0"
            )
        };
        let waits = "SyncRepWaitForLSN";
        for message in ["canceling wait", "storniere Warten"] {
            assert!(is_cancelled_wait(
                notice("01000", message, waits).as_bytes()
            ));
        }
        for other in [
            notice("57P01", "canceling the wait and terminating", waits),
            notice("01000", waits, "exec_stmt_raise"),
            format!("SNOTICE\0VNOTICE\0C00000\0MR{waits}\0\0"),
            String::new(),
        ] {
            assert!(!is_cancelled_wait(other.as_bytes()), "{other:?}");
        }
        let cut = notice("01000", "canceling wait", waits);
        assert!(!is_cancelled_wait(&cut.as_bytes()[..cut.len() - 1]));
    }
}
