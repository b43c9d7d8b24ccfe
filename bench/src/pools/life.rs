//! One session of the identity oracle: its steps, and what must come of each.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use fastrand::Rng;

use super::Ground;
use super::wire::{self, Message, Wire, bind, close, describe, execute, flush, parse, query, sync};

/// Names of prepared statements: few, so that all clients have statements of the same names.
const NAMES: usize = 4;
/// Between two requests to end one query: the first may come before the query runs.
const CANCEL_PAUSE: Duration = Duration::from_millis(20);
/// A row longer than any buffer, in tokens.
const LONG: usize = 30_000;
/// The zone where a session begins.
const ZONE: &str = "GMT";
/// So many of the last steps are told of.
const STORY: usize = 12;

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Step {
    Row,
    TwoRows,
    Prepare,
    Run,
    Unnamed,
    Describe,
    FailedPipeline,
    Flush,
    Commit,
    RollBack,
    Failed,
    SetZone,
    SetLocal,
    Notice,
    CopyIn,
    CopyFails,
    CopyOut,
    Cancel,
    LateCancel,
    LongRow,
    Portal,
    DiscardAll,
    DeallocateAll,
    Fresh,
    TemporaryTable,
    AdvisoryLock,
    SqlPrepare,
    Set,
    Listen,
    HoldCursor,
}

/// A session, and what it must find.
pub struct Life {
    /// Its connection.
    pub wire: Wire,
    /// What everything of it bears.
    pub token: String,
    /// Rows it has committed.
    pub committed: u64,
    /// It keeps its server: what it has left there is its own.
    pub is_pinned: bool,
    zone: String,
    prepared: BTreeMap<String, String>,
    story: Vec<Step>,
    number: u64,
}

/// What was answered, by kinds and texts.
struct Answer {
    /// Kinds, `C` and the like, without what a server says unasked.
    kinds: String,
    /// First columns of all rows.
    rows: Vec<String>,
    /// Codes of errors.
    errors: Vec<String>,
}

impl Life {
    /// Logs in.
    pub async fn begin(ground: &Ground, token: &str) -> Result<Self> {
        let parameters = [
            ("user", ground.user.as_str()),
            ("database", ground.database.as_str()),
            ("application_name", token),
            ("TimeZone", ZONE),
        ];
        Ok(Self {
            wire: Wire::connect(&ground.address, &parameters).await?,
            token: token.to_owned(),
            committed: 0,
            is_pinned: false,
            zone: ZONE.to_owned(),
            prepared: BTreeMap::new(),
            story: Vec::new(),
            number: 0,
        })
    }

    /// The last steps.
    pub fn story(&self) -> String {
        let from = self.story.len().saturating_sub(STORY);
        format!("{:?}", &self.story[from..])
    }

    /// A statement that adds a row of this session.
    pub fn insert(&self, number: u64) -> String {
        format!("INSERT INTO seen VALUES ('{}', {number})", self.token)
    }

    /// Does one thing, and fails if anything of the answer is not its own.
    pub async fn step(&mut self, step: Step, rng: &mut Rng) -> Result<()> {
        self.story.push(step);
        self.number += 1;
        let name = format!("s{}", rng.usize(..NAMES));
        match step {
            Step::Row | Step::TwoRows | Step::LongRow => self.rows(step).await,
            Step::Prepare => self.prepare(&name).await,
            Step::Run => self.run(&name).await,
            Step::Unnamed => self.unnamed().await,
            Step::Describe => self.describe(&name).await,
            Step::FailedPipeline => self.failed_pipeline(&name).await,
            Step::Flush => self.flush().await,
            Step::Commit | Step::RollBack => self.transaction(step == Step::Commit).await,
            Step::Failed => self.failed().await,
            Step::SetZone => self.set_zone(rng).await,
            Step::SetLocal => self.set_local().await,
            Step::Notice => self.notice().await,
            Step::CopyIn | Step::CopyFails => self.copy_in(step == Step::CopyIn).await,
            Step::CopyOut => self.copy_out().await,
            Step::Cancel => self.cancel().await,
            Step::LateCancel => self.late_cancel().await,
            Step::Portal => self.portal().await,
            Step::DiscardAll | Step::DeallocateAll => self.discard(step).await,
            Step::Fresh => self.fresh().await,
            Step::TemporaryTable
            | Step::AdvisoryLock
            | Step::SqlPrepare
            | Step::Set
            | Step::Listen
            | Step::HoldCursor => self.keep(step).await,
        }
    }

    /// Sends, reads up to ReadyForQuery, and looks at what is in no answer of another's.
    async fn ask(&mut self, bytes: &[u8]) -> Result<Answer> {
        let messages = self.wire.ask(bytes).await?;
        self.judge(&messages)
    }

    fn judge(&self, messages: &[Message]) -> Result<Answer> {
        let mut answer = Answer {
            kinds: String::new(),
            rows: Vec::new(),
            errors: Vec::new(),
        };
        for message in messages {
            match message.kind {
                b'N' if !message.field(b'M').contains(&format!("<{}>", self.token)) => {
                    bail!("a notice of another's: {}", message.field(b'M'));
                }
                b'A' if !contains(&message.body, &format!("<{}>", self.token)) => {
                    bail!("a notification of another's: {message:?}");
                }
                b'N' | b'A' | b'S' => continue,
                b'D' => answer.rows.extend(message.columns().into_iter().take(1)),
                b'E' => answer.errors.push(message.field(b'C')),
                _ => {}
            }
            answer.kinds.push(char::from(message.kind));
        }
        Ok(answer)
    }

    async fn text(&mut self, sql: &str) -> Result<String> {
        let answer = self.ask(&query(sql)).await?;
        if answer.kinds != "TDCZ" {
            bail!("{sql} is answered by {} {:?}", answer.kinds, answer.errors);
        }
        Ok(answer.rows.concat())
    }

    async fn must_be(&mut self, sql: &str, wanted: &str) -> Result<()> {
        let got = self.text(sql).await?;
        if got != wanted {
            bail!("{sql}: {got:?}, not {wanted:?}");
        }
        Ok(())
    }

    /// A text that no other session and no other step has.
    fn mark(&self) -> String {
        format!("<{}>{}", self.token, self.number)
    }

    async fn rows(&mut self, step: Step) -> Result<()> {
        let mark = self.mark();
        let (sql, wanted) = match step {
            Step::TwoRows => (
                format!("SELECT '{mark}'; SELECT '{mark}'"),
                vec![mark.clone(); 2],
            ),
            Step::LongRow => (
                format!("SELECT repeat('{mark}', {LONG})"),
                vec![mark.repeat(LONG)],
            ),
            _ => (format!("SELECT '{mark}'"), vec![mark.clone()]),
        };
        let answer = self.ask(&query(&sql)).await?;
        expect(&answer, &"TDC".repeat(wanted.len()), &wanted)
    }

    async fn prepare(&mut self, name: &str) -> Result<()> {
        let mark = self.mark();
        let mut batch = close(name);
        batch.extend(parse(name, &format!("SELECT '{mark}' || $1::text")));
        batch.extend(sync());
        let answer = self.ask(&batch).await?;
        self.prepared.insert(name.to_owned(), mark);
        expect(&answer, "31", &[])
    }

    async fn run(&mut self, name: &str) -> Result<()> {
        let batch = [bind("", name, Some("!")), execute("", 0), sync()].concat();
        let answer = self.ask(&batch).await?;
        match self.prepared.get(name) {
            Some(mark) => expect(&answer, "2DC", &[format!("{mark}!")]),
            None => refused(&answer, "E", "26000"),
        }
    }

    async fn unnamed(&mut self) -> Result<()> {
        let mark = self.mark();
        let parsed = [parse("", &format!("SELECT '{mark}'")), sync()].concat();
        expect(&self.ask(&parsed).await?, "1", &[])?;
        let bound = [bind("", "", None), execute("", 0), sync()].concat();
        expect(&self.ask(&bound).await?, "2DC", &[mark])
    }

    async fn describe(&mut self, name: &str) -> Result<()> {
        let answer = self.ask(&[describe(b'S', name), sync()].concat()).await?;
        match self.prepared.contains_key(name) {
            true => expect(&answer, "tT", &[]),
            false => refused(&answer, "E", "26000"),
        }
    }

    async fn failed_pipeline(&mut self, name: &str) -> Result<()> {
        let mark = self.mark();
        let mut batch = parse("", &format!("SELECT '{mark}'"));
        batch.extend([bind("", "", None), execute("", 0)].concat());
        batch.extend(bind("", "nobody", None));
        // PostgreSQL skips this: the statement that was there stays.
        batch.extend([close(name), parse(name, "SELECT 'skipped'")].concat());
        batch.extend(sync());
        let answer = self.ask(&batch).await?;
        if answer.rows != [mark] || answer.errors != ["26000"] || answer.kinds != "12DCEZ" {
            bail!("{} {:?} {:?}", answer.kinds, answer.rows, answer.errors);
        }
        self.run(name).await
    }

    async fn flush(&mut self) -> Result<()> {
        let mark = self.mark();
        let sql = format!("SELECT '{mark}'");
        let begun = [parse("", &sql), describe(b'S', ""), flush()].concat();
        self.wire.send(&begun).await?;
        for wanted in [b'1', b't', b'T'] {
            let kind = self.wire.message().await?.kind;
            if kind != wanted {
                bail!(
                    "{} in the place of {}",
                    char::from(kind),
                    char::from(wanted)
                );
            }
        }
        let rest = [bind("", "", None), execute("", 0), sync()].concat();
        expect(&self.ask(&rest).await?, "2DC", &[mark])
    }

    async fn transaction(&mut self, commits: bool) -> Result<()> {
        let own = format!("SELECT count(*) FROM seen WHERE who = '{}'", self.token);
        let insert = self.insert(self.number);
        expect(&self.ask(&query("BEGIN")).await?, "C", &[])?;
        expect(&self.ask(&query(&insert)).await?, "C", &[])?;
        self.must_be(&own, &(self.committed + 1).to_string())
            .await?;
        let end = if commits { "COMMIT" } else { "ROLLBACK" };
        expect(&self.ask(&query(end)).await?, "C", &[])?;
        self.committed += u64::from(commits);
        self.must_be(&own, &self.committed.to_string()).await
    }

    async fn failed(&mut self) -> Result<()> {
        let begun = self.ask(&query("BEGIN; SELECT 1/0")).await?;
        refused(&begun, "CE", "22012").or_else(|_| refused(&begun, "CTE", "22012"))?;
        refused(&self.ask(&query("SELECT 1")).await?, "E", "25P02")?;
        expect(&self.ask(&query("COMMIT")).await?, "C", &[])
    }

    async fn set_zone(&mut self, rng: &mut Rng) -> Result<()> {
        self.must_be("SHOW TimeZone", &self.zone.clone()).await?;
        self.zone = format!("Etc/GMT+{}", rng.usize(1..12));
        let set = query(&format!("SET TimeZone = '{}'", self.zone));
        expect(&self.ask(&set).await?, "C", &[])?;
        self.must_be("SHOW TimeZone", &self.zone.clone()).await?;
        self.must_be("SHOW application_name", &self.token.clone())
            .await
    }

    async fn set_local(&mut self) -> Result<()> {
        let batch = "BEGIN; SET LOCAL work_mem = '1MB'; SELECT current_setting('work_mem'); COMMIT";
        expect(
            &self.ask(&query(batch)).await?,
            "CCTDCC",
            &["1MB".to_owned()],
        )?;
        self.must_be("SHOW work_mem", "4MB").await
    }

    async fn notice(&mut self) -> Result<()> {
        let mark = self.mark();
        let raise = query(&format!("DO $$BEGIN RAISE NOTICE '{mark}'; END$$"));
        let messages = self.wire.ask(&raise).await?;
        let heard = messages.iter().filter(|message| message.kind == b'N');
        let heard: Vec<String> = heard.map(|message| message.field(b'M')).collect();
        if heard != [mark] {
            bail!("heard {heard:?}");
        }
        self.judge(&messages).map(|_| ())
    }

    async fn copy_in(&mut self, ends_well: bool) -> Result<()> {
        self.wire.send(&query("COPY seen FROM STDIN")).await?;
        if self.wire.message().await?.kind != b'G' {
            bail!("no CopyInResponse");
        }
        let row = format!("{}\t{}\n", self.token, self.number);
        let data = wire::message(b'd', row.repeat(3).as_bytes());
        match ends_well {
            true => {
                let end = wire::message(b'c', b"");
                expect(&self.ask(&[data, end].concat()).await?, "C", &[])?;
                self.committed += 3;
                Ok(())
            }
            false => {
                let end = wire::message(b'f', b"no\0");
                refused(&self.ask(&[data, end].concat()).await?, "E", "57014")
            }
        }
    }

    async fn copy_out(&mut self) -> Result<()> {
        let own = format!(
            "COPY (SELECT who FROM seen WHERE who = '{}') TO STDOUT",
            self.token
        );
        let messages = self.wire.ask(&query(&own)).await?;
        let wanted = format!("{}\n", self.token);
        let rows: Vec<_> = messages.iter().filter(|m| m.kind == b'd').collect();
        if let Some(other) = rows.iter().find(|row| row.body != wanted.as_bytes()) {
            bail!("copied out: {other:?}");
        }
        if rows.len() as u64 != self.committed {
            bail!(
                "{} rows were copied out, not {}",
                rows.len(),
                self.committed
            );
        }
        Ok(())
    }

    async fn cancel(&mut self) -> Result<()> {
        let mark = self.mark();
        self.wire
            .send(&query(&format!("SELECT pg_sleep(60), '{mark}'")))
            .await?;
        let mut pause = tokio::time::interval(CANCEL_PAUSE);
        let messages = loop {
            // Dropping the read in the middle of a message would lose it.
            pause.tick().await;
            self.wire.cancel().await?;
            if self.wire.is_answered(CANCEL_PAUSE).await? {
                break self.wire.answer().await?;
            }
        };
        let answer = self.judge(&messages)?;
        refused(&answer, "E", "57014").or_else(|_| refused(&answer, "TE", "57014"))
    }

    /// Nothing runs: it must hit nobody, this session's next query least of all.
    async fn late_cancel(&mut self) -> Result<()> {
        self.rows(Step::Row).await?;
        self.wire.cancel().await?;
        self.rows(Step::Row).await
    }

    async fn portal(&mut self) -> Result<()> {
        let mark = self.mark();
        let sql = format!("SELECT '{mark}' || g FROM generate_series(1, 3) g");
        let mut batch = query("BEGIN");
        expect(&self.ask(&batch).await?, "C", &[])?;
        batch = [
            parse("", &sql),
            bind("p", "", None),
            execute("p", 2),
            sync(),
        ]
        .concat();
        let two: Vec<String> = (1..3).map(|n| format!("{mark}{n}")).collect();
        expect(&self.ask(&batch).await?, "12DDs", &two)?;
        let rest = self.ask(&[execute("p", 2), sync()].concat()).await?;
        expect(&rest, "DC", &[format!("{mark}3")])?;
        expect(&self.ask(&query("COMMIT")).await?, "C", &[])
    }

    async fn discard(&mut self, step: Step) -> Result<()> {
        let is_all = step == Step::DiscardAll;
        let sql = if is_all {
            "DISCARD ALL"
        } else {
            "DEALLOCATE ALL"
        };
        expect(&self.ask(&query(sql)).await?, "C", &[])?;
        self.prepared.clear();
        if is_all {
            self.zone = ZONE.to_owned();
        }
        self.must_be("SHOW TimeZone", &self.zone.clone()).await
    }

    /// Where this session has left nothing, nobody has.
    async fn fresh(&mut self) -> Result<()> {
        if self.is_pinned {
            return Ok(());
        }
        let left = "SELECT concat_ws(' ', \
             (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'), \
             (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
             (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'trunkline%'), \
             (SELECT count(*) FROM pg_listening_channels()), \
             (SELECT count(*) FROM pg_cursors WHERE is_holdable), \
             current_setting('statement_timeout'), current_setting('work_mem'), \
             current_setting('application_name'), current_setting('TimeZone'))";
        let wanted = format!("0 0 0 0 0 0 4MB {} {}", self.token, self.zone);
        self.must_be(left, &wanted).await
    }

    /// What cannot move: from here on the server is this session's.
    async fn keep(&mut self, step: Step) -> Result<()> {
        let mark = self.mark();
        let (leave, look, wanted) = match step {
            Step::TemporaryTable => (
                format!(
                    "CREATE TEMP TABLE kept_{0} (who text); INSERT INTO kept_{0} VALUES ('{mark}')",
                    self.number
                ),
                "",
                mark,
            ),
            Step::AdvisoryLock => (
                // The server of a client that went away in the middle may not have ended yet: waited for.
                "SELECT pg_advisory_lock(42)".to_owned(),
                "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
                "t".to_owned(),
            ),
            Step::SqlPrepare => (
                format!("PREPARE kept_{} AS SELECT '{mark}'", self.number),
                "",
                mark,
            ),
            Step::Set => (
                "SET statement_timeout = '59s'".to_owned(),
                "SHOW statement_timeout",
                "59s".to_owned(),
            ),
            Step::Listen => (
                format!("LISTEN {0}; NOTIFY {0}, '{mark}'", self.token),
                "SELECT count(*) FROM pg_listening_channels()",
                "1".to_owned(),
            ),
            _ => (
                format!(
                    "DECLARE kept_{} CURSOR WITH HOLD FOR SELECT '{mark}'",
                    self.number
                ),
                "",
                mark,
            ),
        };
        let answer = self.ask(&query(&leave)).await?;
        self.is_pinned = true;
        if !answer.errors.is_empty() {
            bail!("{leave}: {:?}", answer.errors);
        }
        let look = match step {
            Step::TemporaryTable => format!("SELECT who FROM kept_{}", self.number),
            Step::SqlPrepare => format!("EXECUTE kept_{}", self.number),
            Step::HoldCursor => format!("FETCH kept_{}", self.number),
            _ => look.to_owned(),
        };
        self.must_be(&look, &wanted).await
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// Exactly this, and ReadyForQuery after it.
fn expect(answer: &Answer, kinds: &str, rows: &[String]) -> Result<()> {
    let is_so = answer.kinds.strip_suffix('Z') == Some(kinds) && answer.rows == rows;
    if !is_so {
        let rows: Vec<String> = answer
            .rows
            .iter()
            .map(|row| row.chars().take(80).collect())
            .collect();
        bail!(
            "{} {rows:?} {:?} in the place of {kinds}",
            answer.kinds,
            answer.errors
        );
    }
    Ok(())
}

/// Exactly one error of this code.
fn refused(answer: &Answer, kinds: &str, code: &str) -> Result<()> {
    expect(answer, kinds, &[])?;
    match answer.errors[..] {
        [ref one] if one == code => Ok(()),
        _ => bail!("{:?} in the place of {code}", answer.errors),
    }
}
