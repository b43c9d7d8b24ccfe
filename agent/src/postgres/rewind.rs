//! Whether the local WAL has left the history of another server, and pg_rewind.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use trunkline_shared::cluster::timeline::{Ancestry, TimelineEnd};
use trunkline_shared::cluster::{Lsn, SystemId, Timeline, TimelineHistory};

use super::archive;
use super::control_data::ControlState;
use super::directory::{REWINDING, remove_tree};
use super::dynamic_config;
use super::files::{
    STANDBY_SIGNAL, append_line, remove_file, sync_directory, write_file, write_pgpass,
};
use super::process::Tool;
use super::settings::{conninfo, quote};
use super::{ControlData, Postgres, PostgresConfig, PostgresError, Upstream};

/// Longest pg_rewind: a day. It is ended earlier by dropping the call.
const REWIND_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Limit of the queries to the source.
const SOURCE_LIMIT: Duration = Duration::from_secs(8);

/// Longest look at the last WAL record.
const WALDUMP_LIMIT: Duration = Duration::from_secs(30);

/// Suffix of the folder for WAL after a fork.
pub const WAL_ASIDE: &str = ".wal-aside";

/// Most WAL set aside; beyond it the segments nearest to the fork are kept, and earlier copies removed.
const WAL_ASIDE_LIMIT_BYTES: u64 = 1 << 30;

/// In force while pg_rewind recovers a crashed target: the checkpoint at the end of that recovery would
/// recycle segments between the last common checkpoint and the fork, which pg_rewind reads next. The next
/// start writes the file anew.
const KEEP_WAL: &str = "wal_keep_size = '1TB'";

/// Size of a WAL page, PostgreSQL's default; packages have no other.
pub(super) const WAL_PAGE_BYTES: u64 = 8192;

/// Where the local WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalEnd {
    /// A primary that was stopped cleanly: the end of its shutdown checkpoint's record.
    StoppedPrimary {
        /// Its timeline.
        timeline: Timeline,
        /// First byte after the record.
        end: Lsn,
    },
    /// A primary that crashed: it may have written more than anybody knows.
    CrashedPrimary {
        /// Its timeline.
        timeline: Timeline,
    },
    /// A replica: the furthest it has received or replayed.
    Replica {
        /// The newest timeline it has reached.
        timeline: Timeline,
        /// That position.
        end: Lsn,
    },
}

/// Whether a directory can follow a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewindNeed {
    /// It can as it is.
    NotNeeded,
    /// Its WAL goes on after the other's history left its timeline.
    Needed {
        /// Where they parted.
        fork: Lsn,
    },
    /// A primary stood on the very timeline on which another now writes: nothing tells them apart, and
    /// pg_rewind refuses. Only a copy is safe if the other is not this instance's own continuation.
    SameTimeline,
    /// The history does not mention the local timeline.
    Unknown,
}

/// Compares the local end with the history of a server on timeline `of` (pure).
pub fn needs_rewind(local: LocalEnd, of: Timeline, history: &TimelineHistory) -> RewindNeed {
    match local {
        LocalEnd::Replica { timeline, end } => match history.ancestry(timeline, end, of) {
            Ancestry::Ancestor => RewindNeed::NotNeeded,
            Ancestry::Diverged { fork } => RewindNeed::Needed { fork },
            Ancestry::Unknown => RewindNeed::Unknown,
        },
        LocalEnd::StoppedPrimary { timeline, end } => {
            match (timeline == of, history.ancestry(timeline, end, of)) {
                (true, _) => RewindNeed::SameTimeline,
                // A primary whose last record is not exactly where the next timeline begins has written
                // something the other has not, or lacks something it once wrote.
                (false, Ancestry::Ancestor) => match history.end_of(timeline) {
                    Some(fork) if fork != end => RewindNeed::Needed { fork },
                    _ => RewindNeed::NotNeeded,
                },
                (false, Ancestry::Diverged { fork }) => RewindNeed::Needed { fork },
                (false, Ancestry::Unknown) => RewindNeed::Unknown,
            }
        }
        LocalEnd::CrashedPrimary { timeline } if timeline == of => RewindNeed::SameTimeline,
        LocalEnd::CrashedPrimary { timeline } => {
            match history.ancestry(timeline, Lsn(u64::MAX), of) {
                Ancestry::Diverged { fork } => RewindNeed::Needed { fork },
                Ancestry::Ancestor | Ancestry::Unknown => RewindNeed::Unknown,
            }
        }
    }
}

/// What a possible source of a rewind says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFacts {
    /// Its system identifier.
    pub system_id: SystemId,
    /// Whether it is in recovery: then it is no source.
    pub is_in_recovery: bool,
    /// Its timeline; the newest its control data names while it is in recovery.
    pub timeline: Timeline,
    /// Timeline of its latest checkpoint.
    pub checkpoint_timeline: Timeline,
    /// The ancestry of its timeline.
    pub history: TimelineHistory,
}

impl SourceFacts {
    /// Whether pg_rewind may run against it: a primary that has written a checkpoint since its promotion.
    /// Before that its control file still names the old timeline, and a rewind damages the target.
    pub fn is_rewind_source(&self) -> bool {
        !self.is_in_recovery && self.checkpoint_timeline == self.timeline
    }
}

/// System identifier, recovery, timeline, timeline of the checkpoint, one row each.
const FACTS_QUERY: &str = "\
SELECT v FROM (SELECT 1, system_identifier::text FROM pg_catalog.pg_control_system()
 UNION ALL SELECT 2, pg_catalog.pg_is_in_recovery()::text
 UNION ALL SELECT 3, CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.to_hex(greatest(timeline_id,
   (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery())))
   ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END
   FROM pg_catalog.pg_control_checkpoint()
 UNION ALL SELECT 4, timeline_id::text FROM pg_catalog.pg_control_checkpoint()) AS r(n, v)
 ORDER BY n";

/// Reads a `.history` file (pure).
pub fn parse_history(text: &str) -> TimelineHistory {
    let ends = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some(TimelineEnd {
                timeline: Timeline(fields.next()?.parse().ok()?),
                end: fields.next()?.parse().ok()?,
            })
        })
        .collect();
    TimelineHistory::new(ends)
}

/// Where a record of `total` bytes that begins at `start` ends: a page header is skipped at every page it
/// reaches, and the next record is aligned to 8 bytes (pure).
fn record_end(start: Lsn, total: u64, segment_bytes: u64) -> Lsn {
    let (mut at, mut left) = (start.0, total);
    loop {
        let room = WAL_PAGE_BYTES - at % WAL_PAGE_BYTES;
        if left <= room {
            // An end that meets the page's is followed by the next page's header only when more is written.
            return Lsn((at + left).next_multiple_of(8));
        }
        left -= room;
        at += room;
        at += if at.is_multiple_of(segment_bytes) {
            40
        } else {
            24
        };
    }
}

/// The total length in `pg_waldump`'s line `... len (rec/tot):    114/   114, ...` (pure).
fn total_length(line: &str) -> Option<u64> {
    let after = line.split("len (rec/tot):").nth(1)?;
    let (_, total) = after.split(',').next()?.split_once('/')?;
    total.trim().parse().ok()
}

impl Postgres {
    /// Where the local WAL ends, of a stopped instance. `received` is what the running replica was last
    /// seen to have received, if anything: its control file may lag behind that.
    pub async fn local_end(&self, received: Option<Lsn>) -> Result<LocalEnd, PostgresError> {
        let data = self.control_data().await?;
        let timeline = data.newest_timeline();
        Ok(match data.state {
            ControlState::ShutDown => LocalEnd::StoppedPrimary {
                timeline,
                end: self.shutdown_end(&data).await?,
            },
            ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
                LocalEnd::Replica {
                    timeline,
                    end: data
                        .min_recovery_end
                        .max(data.checkpoint)
                        .max(received.unwrap_or_default()),
                }
            }
            ControlState::StartingUp
            | ControlState::ShuttingDown
            | ControlState::InCrashRecovery
            | ControlState::InProduction => LocalEnd::CrashedPrimary { timeline },
        })
    }

    /// The end of a clean primary's WAL: where its shutdown checkpoint's record ends. A replica that has
    /// replayed up to here has everything.
    pub async fn shutdown_end(&self, data: &ControlData) -> Result<Lsn, PostgresError> {
        let arguments = vec![
            format!("--path={}", self.config().data_dir.join("pg_wal").display()),
            format!("--timeline={}", data.timeline),
            format!("--start={}", data.checkpoint),
            "--limit=1".to_owned(),
        ];
        let tool = self.tool("pg_waldump", arguments, WALDUMP_LIMIT, "pg_waldump");
        let output = tool.run().await?;
        let total = total_length(&output.stdout).ok_or(PostgresError::Unreadable {
            what: "the output of pg_waldump",
            text: output.stdout,
        })?;
        Ok(record_end(data.checkpoint, total, data.wal_segment_bytes))
    }

    /// Asks another server, as the rewind role, what is needed to compare histories.
    pub async fn source_facts(&self, source: &Upstream) -> Result<SourceFacts, PostgresError> {
        let config = self.config();
        write_pgpass(&config)?;
        let server = rewind_conninfo(&config, source);
        let answer = self.ask_source(&config, &server, FACTS_QUERY).await?;
        let rows: Vec<&str> = answer.lines().collect();
        let unreadable = || PostgresError::Unreadable {
            what: "what the source says of itself",
            text: rows.join(" "),
        };
        let [system_id, in_recovery, timeline, checkpoint] = rows.as_slice() else {
            return Err(unreadable());
        };
        let timeline = u32::from_str_radix(timeline, 16).map_err(|_| unreadable())?;
        let history = if timeline > 1 {
            let sql = format!(
                "SELECT pg_catalog.convert_from(pg_catalog.pg_read_binary_file(\
                 'pg_wal/{timeline:08X}.history', 0, 1048576, true), 'UTF8')"
            );
            parse_history(&self.ask_source(&config, &server, &sql).await?)
        } else {
            TimelineHistory::default()
        };
        Ok(SourceFacts {
            system_id: SystemId(system_id.parse::<i64>().map_err(|_| unreadable())? as u64),
            is_in_recovery: *in_recovery == "true",
            timeline: Timeline(timeline),
            checkpoint_timeline: Timeline(checkpoint.parse().map_err(|_| unreadable())?),
            history,
        })
    }

    /// Through psql, which connects by every setting that pg_rewind itself takes.
    pub(super) async fn ask_source(
        &self,
        config: &PostgresConfig,
        server: &str,
        sql: &str,
    ) -> Result<String, PostgresError> {
        let mut arguments = ["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d"]
            .map(str::to_owned)
            .to_vec();
        arguments.extend([server.to_owned(), "-c".to_owned(), sql.to_owned()]);
        let tool = Tool {
            passfile: Some(&config.pgpass),
            ..self.tool(
                "psql",
                arguments,
                SOURCE_LIMIT,
                "the question to the source",
            )
        };
        Ok(tool.run().await?.stdout)
    }

    /// Runs pg_rewind against `source`, which must have been found to be one by
    /// [`SourceFacts::is_rewind_source`] and to have this system identifier. The instance must be stopped;
    /// after a crash pg_rewind recovers it first. WAL after `fork` is copied aside before anything
    /// changes. Until it succeeds the directory is marked and must not be started.
    pub async fn rewind(&self, source: &Upstream, fork: Lsn) -> Result<(), PostgresError> {
        let config = self.config();
        self.must_be_stopped()?;
        let data = self.control_data().await?;
        let (from, to) = (config.data_dir.join("pg_wal"), config.beside(WAL_ASIDE));
        let first = fork.0 / data.wal_segment_bytes;
        let (timeline, segment_bytes) = (data.newest_timeline(), data.wal_segment_bytes);
        let copying = move || {
            let names = segments_from(&from, timeline, first, segment_bytes)?;
            copy_wal_aside(&from, &to, &names, segment_bytes)
        };
        if let Ok(result) = tokio::task::spawn_blocking(copying).await {
            result?;
        }
        write_pgpass(&config)?;
        let server = rewind_conninfo(&config, source);
        let mut arguments = vec![
            format!("--target-pgdata={}", config.data_dir.display()),
            format!("--source-server={server}"),
        ];
        let restore = archive::restore_command(&config);
        if restore.is_some() {
            arguments.push("--restore-target-wal".to_owned());
        }
        if let Some(dir) = &config.config_dir {
            let file = dir.join("postgresql.conf");
            arguments.push(format!("--config-file={}", file.display()));
        }
        let marker = config.beside(REWINDING);
        write_file(&marker, "")?;
        // After a crash pg_rewind recovers by a server in single-user mode, which knows no standby; each start writes it anew.
        remove_file(&config.data_dir.join(STANDBY_SIGNAL))?;
        let conf = config.config_dir().join("postgresql.conf");
        append_line(&conf, KEEP_WAL)?;
        if let Some(restore) = &restore {
            // A former primary's file holds no settings of recovery, and pg_rewind reads this one there.
            append_line(&conf, &format!("restore_command = {}", quote(restore)))?;
        }
        if !matches!(
            data.state,
            ControlState::ShutDown | ControlState::ShutDownInRecovery
        ) {
            archive::archive_pending(&config).await;
        }
        let tool = Tool {
            passfile: Some(&config.pgpass),
            ..self.tool("pg_rewind", arguments, REWIND_LIMIT, "pg_rewind")
        };
        archive::with_missing_wal(&config, restore.as_deref(), &tool).await?;
        // Slots are the source's, or stale: the agent makes those that are wanted.
        empty_directory(&config.data_dir.join("pg_replslot"))?;
        dynamic_config::forget(&config.data_dir)?;
        remove_file(&marker)
    }
}

pub(super) fn rewind_conninfo(config: &PostgresConfig, source: &Upstream) -> String {
    let port = source.port.to_string();
    let mut fields = vec![
        ("host", source.host.as_str()),
        ("port", port.as_str()),
        ("user", config.rewind.username.as_str()),
        ("dbname", config.database.as_str()),
    ];
    if source.host.contains(',') {
        fields.push(("target_session_attrs", "read-write"));
    }
    fields.extend(config.rewind.connection_fields());
    conninfo(&fields)
}

fn empty_directory(path: &Path) -> Result<(), PostgresError> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        remove_tree(&entry.path())?;
    }
    Ok(())
}

/// The segments of `timeline` from number `first` on that hold WAL: later ones may be recycled, with what they held before
/// under other names.
pub(super) fn segments_from(
    wal: &Path,
    timeline: Timeline,
    first: u64,
    segment_bytes: u64,
) -> Result<Vec<String>, PostgresError> {
    let entries = fs::read_dir(wal).map_err(PostgresError::file("read", wal))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let number = |name: &String| segment_number(name, timeline, segment_bytes);
    let mut found = Vec::new();
    for name in names.filter(|name| number(name).is_some_and(|n| n >= first)) {
        let begin = number(&name).map(|n| n * segment_bytes);
        let path = wal.join(&name);
        let address = page_address(&path, 0).map_err(PostgresError::file("read", &path))?;
        if address == begin {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// Which byte of WAL the page at `offset` says that it begins with (`xlp_pageaddr`); `None` where there is no page.
pub(super) fn page_address(segment: &Path, offset: u64) -> io::Result<Option<u64>> {
    let mut file = File::open(segment)?;
    let mut header = [0; 16];
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let (_, address) = header.split_at(8);
    Ok(address.try_into().ok().map(u64::from_ne_bytes))
}

/// Copies these segments, the first of them if they are too many, to where no earlier copy is replaced: a segment of a
/// timeline that was left is never written again. Earlier copies go where they would be too many together. Copies, not
/// links: pg_rewind writes into the files of the target.
pub(super) fn copy_wal_aside(
    from: &Path,
    to: &Path,
    names: &[String],
    segment_bytes: u64,
) -> Result<(), PostgresError> {
    if names.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(to).map_err(PostgresError::file("create", to))?;
    let most = usize::try_from(WAL_ASIDE_LIMIT_BYTES / segment_bytes).unwrap_or(usize::MAX);
    let (kept, left) = names.split_at(names.len().min(most.max(1)));
    if !left.is_empty() {
        tracing::warn!(
            kept = kept.len(),
            not_kept = left.len(),
            "not all WAL is set aside"
        );
    }
    let is_there = |name: &&String| to.join(name).exists();
    let new = kept.len() - kept.iter().filter(is_there).count();
    remove_oldest(to, kept, most.saturating_sub(new))?;
    for name in kept.iter().filter(|name| !is_there(name)) {
        // Whole or not at all under its name.
        let (path, part) = (to.join(name), to.join(format!("{name}.new")));
        let copied = fs::copy(from.join(name), &part)
            .and_then(|_| File::open(&part)?.sync_all())
            .and_then(|()| fs::rename(&part, &path));
        if let Err(error) = copied {
            // Its part may hold the room that a start needs.
            remove_file(&part)?;
            return Err(PostgresError::file("copy WAL to", &path)(error));
        }
    }
    sync_directory(to)
}

/// Leaves so many of the copies at the most, `kept` among them.
fn remove_oldest(aside: &Path, kept: &[String], most: usize) -> Result<(), PostgresError> {
    let entries = fs::read_dir(aside).map_err(PostgresError::file("read", aside))?;
    let files = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((entry.metadata().ok()?.modified().ok()?, name))
    });
    let mut all: Vec<_> = files.collect();
    all.sort();
    let surplus = all.len().saturating_sub(most);
    for (_, name) in all
        .iter()
        .filter(|(_, name)| !kept.contains(name))
        .take(surplus)
    {
        let path = aside.join(name);
        fs::remove_file(&path).map_err(PostgresError::file("remove", &path))?;
    }
    Ok(())
}

/// The number of a WAL segment of `timeline` by its file's name (pure).
pub(super) fn segment_number(name: &str, timeline: Timeline, segment_bytes: u64) -> Option<u64> {
    let is_segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_segment || u32::from_str_radix(&name[..8], 16).ok()? != timeline.0 {
        return None;
    }
    let high = u64::from_str_radix(&name[8..16], 16).ok()?;
    let low = u64::from_str_radix(&name[16..], 16).ok()?;
    Some(high * ((1 << 32) / segment_bytes) + low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> TimelineHistory {
        parse_history("1\t0/3000100\tno recovery target specified\n\n")
    }

    #[test]
    fn a_primary_stopped_exactly_at_the_fork_follows_and_any_other_is_rewound() {
        let stopped = |end| LocalEnd::StoppedPrimary {
            timeline: Timeline(1),
            end: Lsn(end),
        };
        let fork = Lsn(0x300_0100);
        let need = |local| needs_rewind(local, Timeline(2), &history());
        assert_eq!(need(stopped(0x300_0100)), RewindNeed::NotNeeded);
        assert_eq!(need(stopped(0x300_0000)), RewindNeed::Needed { fork });
        assert_eq!(need(stopped(0x300_0200)), RewindNeed::Needed { fork });
        let crashed = |t| LocalEnd::CrashedPrimary {
            timeline: Timeline(t),
        };
        assert_eq!(need(crashed(1)), RewindNeed::Needed { fork });
        assert_eq!(need(crashed(2)), RewindNeed::SameTimeline);
    }

    #[test]
    fn a_replica_is_rewound_only_beyond_the_fork() {
        let need = |timeline, end| {
            let local = LocalEnd::Replica {
                timeline: Timeline(timeline),
                end: Lsn(end),
            };
            needs_rewind(local, Timeline(2), &history())
        };
        let fork = Lsn(0x300_0100);
        assert_eq!(need(1, 0x300_0100), RewindNeed::NotNeeded);
        assert_eq!(need(1, 0x300_0101), RewindNeed::Needed { fork });
        assert_eq!(need(2, 0x900_0000), RewindNeed::NotNeeded);
        let unheard = needs_rewind(
            LocalEnd::Replica {
                timeline: Timeline(1),
                end: Lsn(1),
            },
            Timeline(3),
            &TimelineHistory::default(),
        );
        assert_eq!(unheard, RewindNeed::Unknown);
    }

    #[test]
    fn a_records_end_skips_page_headers_and_is_aligned() {
        let segment = 16 << 20;
        assert_eq!(record_end(Lsn(0x300_0028), 114, segment), Lsn(0x300_00A0));
        // 64 bytes fit on the page, 50 follow after a header of 24.
        assert_eq!(
            record_end(Lsn(0x300_2000 - 64), 114, segment),
            Lsn((0x300_2000 + 24 + 50_u64).next_multiple_of(8))
        );
        // The first page of a segment has a longer header.
        assert_eq!(
            record_end(Lsn(0x400_0000 - 64), 114, segment),
            Lsn((0x400_0000 + 40 + 50_u64).next_multiple_of(8))
        );
    }

    #[test]
    fn reads_names_and_lengths() {
        let line =
            "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000028";
        assert_eq!(total_length(line), Some(114));
        let size = 16 << 20;
        let name = "000000010000000200000003";
        assert_eq!(segment_number(name, Timeline(1), size), Some(2 * 256 + 3));
        assert_eq!(segment_number(name, Timeline(2), size), None);
        assert_eq!(segment_number("00000002.history", Timeline(2), size), None);
    }
}
