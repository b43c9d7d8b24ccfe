//! The pages of every instance are sound: PostgreSQL's own programs say so.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::stack::Stack;

/// How long one program may take over a small database.
const LIMIT: Duration = Duration::from_secs(60);
/// Bounds an agent's clean end, with its server's.
const END_LIMIT: Duration = Duration::from_secs(60);
/// The cluster must be whole again after each member's stop.
const WHOLE_LIMIT: Duration = Duration::from_secs(60);

/// Checks tables and indexes of every member while it runs (`pg_amcheck`), then every page's checksum while it
/// is stopped (`pg_checksums`), one member after another. Says what was checked.
pub async fn check(stack: &mut Stack, leader: usize) -> Result<String> {
    let amcheck = amcheck(stack, leader).await?;
    for index in 0..stack.members.len() {
        let member = &mut stack.members[index];
        member.end(Signal::TERM, END_LIMIT).await?;
        let folder = member.data_dir.to_string_lossy().into_owned();
        let name = member.name.clone();
        let program = stack.client_program("pg_checksums", &["--check", "-D", &folder]);
        let checked = program.finish(LIMIT).await;
        stack.members[index].start()?;
        checked.with_context(|| format!("the checksums of {name}"))?;
        stack.until_converged(WHOLE_LIMIT).await?;
    }
    Ok(format!("pg_checksums on every member; {amcheck}"))
}

async fn amcheck(stack: &Stack, leader: usize) -> Result<String> {
    let client = stack.members[leader].sql("postgres").await?;
    let available = client
        .query_opt(
            "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'",
            &[],
        )
        .await?;
    if available.is_none() {
        return Ok("no pg_amcheck: this PostgreSQL has no amcheck".to_owned());
    }
    let others = (0..stack.members.len()).filter(|index| *index != leader);
    for index in std::iter::once(leader).chain(others) {
        let member = &stack.members[index];
        let socket = member.socket().to_string_lossy().into_owned();
        let base = ["-h", &socket, "-p", "5432", "-U", "postgres", "--all"];
        let words = match index == leader {
            true => [&base[..], &["--install-missing"]].concat(),
            false => base.to_vec(),
        };
        let checked = stack
            .client_program("pg_amcheck", &words)
            .finish(LIMIT)
            .await;
        checked.with_context(|| format!("pg_amcheck of {}", member.name))?;
        if index == leader {
            // The extension it installed must be on the replicas before they are checked.
            crate::check::ledger::same_everywhere(stack, leader, &["ledger"]).await?;
        }
    }
    Ok("pg_amcheck on every member".to_owned())
}
