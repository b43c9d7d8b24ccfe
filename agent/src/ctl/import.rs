//! `import`: `pgbouncer.ini` or `haproxy.cfg` as a router's file, with a word on everything that has no
//! equivalent. What it writes is shown to `trunkline-router --validate` before it is called usable.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use trunkline_shared::dcs::etcd::Protocol;

use super::CtlError;
use super::arguments::Import;
use super::terminal::Terminal;
use crate::config::client::ClientConfig;

mod haproxy;
mod ini;
mod notes;
mod pgbouncer;
mod router_file;
mod scopes;

use notes::Weight;
use router_file::Translation;
use scopes::Scopes;

/// The largest file that is read, bytes.
const LARGEST: u64 = 16 << 20;

/// The program that judges the result.
const ROUTER: &str = "trunkline-router";

/// `trunkline import`
pub(super) fn import(
    terminal: &Terminal,
    asked: &Import,
    config: &ClientConfig,
) -> Result<(), CtlError> {
    if let Some(output) = &asked.output
        && output.exists()
        && !asked.force
    {
        let why = format!(
            "{}: it is there already; --force replaces it",
            output.display()
        );
        return Err(CtlError::Usage(why));
    }
    let name = asked.file.display().to_string();
    let text = open(&name).map_err(CtlError::Usage)?;
    let default = config.cluster.as_ref().map(|cluster| cluster.as_str());
    let mut scopes = Scopes::parse(&asked.scope, default).map_err(CtlError::Usage)?;
    let userlist = asked.userlist.as_ref();
    let userlist = userlist.map(|file| file.display().to_string());
    let mut made = translate((&name, &text), userlist, &mut scopes, &open)?;
    if let Some(unused) = scopes.unused().first() {
        let why = format!("--scope {unused}=...: {name} has nothing of that name");
        return Err(CtlError::Usage(why));
    }
    store(&mut made, config);
    let text = made.file.text(&name);
    let (mut important, mut moot) = (0, 0);
    for note in made.notes.sorted() {
        match note.weight {
            Weight::Attention => important += 1,
            Weight::Moot => moot += 1,
        }
        terminal.warn(&note.to_string());
    }
    match &asked.output {
        Some(output) => write(output, &text, asked.force)?,
        None => terminal.print(&text)?,
    }
    let judged = validate(&text, asked.router.as_deref());
    let place = asked.output.as_ref().map(|output| output.display());
    let place = place.map_or_else(|| "the file".to_owned(), |place| place.to_string());
    let taken = match judged {
        Ok(()) => ", and the router takes it",
        Err(_) => "",
    };
    terminal.warn(&format!(
        "{place} is written{taken}; lines that need attention: {important}, without a meaning here: {moot}"
    ));
    judged
}

/// What a text alone becomes, without the store and without any file that it includes; `scopes` as `--scope` has them.
///
/// # Errors
/// It cannot be read, or names what `--scope` has to say.
pub fn translated(text: &str, scopes: &[String]) -> Result<String, CtlError> {
    const NAME: &str = "text";
    let mut scopes = Scopes::parse(scopes, None).map_err(CtlError::Usage)?;
    let open = |name: &str| match name {
        NAME => Ok(text.to_owned()),
        _ => Err(format!("{name}: there is nothing but a text")),
    };
    let made = translate((NAME, text), None, &mut scopes, &open)?;
    Ok(made.file.text(NAME))
}

fn translate(
    (name, text): (&str, &str),
    userlist: Option<String>,
    scopes: &mut Scopes,
    open: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Translation, CtlError> {
    let made = match is_pgbouncers(text) {
        true => {
            let entries = ini::read(name, open);
            let entries = entries.map_err(|why| CtlError::Usage(why.to_string()))?;
            pgbouncer::translate(&entries, scopes, userlist.as_deref())
        }
        false if userlist.is_some() => {
            let why = "a file of users belongs to pgbouncer.ini; HAProxy has none";
            return Err(CtlError::Usage(why.to_owned()));
        }
        false => haproxy::translate(&haproxy::read::read(name, text), scopes),
    };
    made.map_err(|questions| {
        CtlError::Usage(format!(
            "{}\n--scope CLUSTER says it for all, --scope WHAT=CLUSTER for one; WHAT is a host, host:port, or a section \
             of haproxy.cfg",
            questions.join("\n")
        ))
    })
}

/// By the first line that is no comment: sections of PgBouncer's file stand in brackets.
fn is_pgbouncers(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    first.is_some_and(|line| line.starts_with(['[', '%']))
}

/// The text of a file.
fn open(name: &str) -> Result<String, String> {
    let wrong = |why: std::io::Error| format!("{name}: it cannot be read: {why}");
    let size = std::fs::metadata(name).map_err(wrong)?.len();
    if size > LARGEST {
        return Err(format!("{name}: it is larger than {LARGEST} bytes"));
    }
    std::fs::read_to_string(name).map_err(wrong)
}

/// Where the store is and how agents are asked, as the command itself knows it. No password is written.
fn store(made: &mut Translation, config: &ClientConfig) {
    let (file, etcd) = (&mut made.file, &config.etcd);
    file.set("namespace", json!(format!("/{}", config.namespace)));
    file.set("etcd3.hosts", json!(etcd.hosts.join(",")));
    match etcd.protocol {
        Protocol::Http => {}
        Protocol::Https => file.set("etcd3.protocol", json!("https")),
    }
    let own = &config.rest_client;
    for (key, path) in [
        ("etcd3.cacert", &etcd.cacert),
        ("etcd3.cert", &etcd.cert),
        ("etcd3.key", &etcd.key),
        ("ctl.cacert", &own.files.ca),
        ("ctl.certfile", &own.files.certificate),
        ("ctl.keyfile", &own.files.key),
    ] {
        if let Some(path) = path {
            file.set(key, path_value(path));
        }
    }
    if own.is_insecure {
        file.set("ctl.insecure", json!(true));
    }
    if etcd.username.is_some() {
        let text = "the store asks for a user, and a password is not copied: write username and password there";
        made.notes.attention(None, "etcd3", text);
    }
}

fn path_value(path: &Path) -> Value {
    json!(path.display().to_string())
}

/// Writes a new file, or replaces one as a whole.
fn write(output: &Path, text: &str, replaces: bool) -> Result<(), CtlError> {
    let failed = |why: std::io::Error| CtlError::Output(format!("{}: {why}", output.display()));
    let file = match replaces {
        true => File::create(output),
        false => File::create_new(output),
    };
    let mut file = file.map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

/// Shows the text to the router.
fn validate(text: &str, router: Option<&Path>) -> Result<(), CtlError> {
    let failed = |why: String| {
        let what = "whether the router takes what was written is not known";
        CtlError::Failed(format!("{what}: {why}"))
    };
    let router = router.map_or_else(beside, Path::to_owned);
    #[expect(
        clippy::disallowed_methods,
        reason = "the router's own check of the file is the only process that the command starts"
    )]
    let started = std::process::Command::new(&router)
        .args(["--validate", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(|why| {
        let name = router.display();
        failed(format!(
            "{name} cannot be started ({why}); --router names it, or run it with --validate by hand"
        ))
    })?;
    if let Some(mut input) = child.stdin.take() {
        // A router that ends early says why.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output();
    let output = output.map_err(|why| failed(why.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().replace("/dev/stdin: ", "");
    Err(CtlError::Failed(format!(
        "the router does not take what was written yet:\n{said}"
    )))
}

/// The router's program beside this one, or any on the path.
fn beside() -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join(ROUTER)));
    let there = beside.filter(|program| program.is_file());
    there.unwrap_or_else(|| PathBuf::from(ROUTER))
}

#[cfg(test)]
mod tests;
