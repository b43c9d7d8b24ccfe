//! Logical slots: made on a primary, copied to a standby as files, moved after their consumers, and known to
//! be usable there or not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use trunkline_shared::cluster::Lsn;

use super::files::sync_directory;
use super::rewind::rewind_conninfo;
use super::sql::{Target, quote_literal};
use super::{Postgres, PostgresConfig, PostgresError, StopPlan, Upstream};

/// Longest creation: it waits for transactions in progress.
const CREATE_LIMIT: Duration = Duration::from_secs(60);

/// Longest advance: all WAL in between is read.
const ADVANCE_LIMIT: Duration = Duration::from_secs(600);

/// Limit of the small statements here.
const STATEMENT_LIMIT: Duration = Duration::from_secs(3);

/// A logical slot to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSlot {
    /// Its name.
    pub name: String,
    /// The database whose changes it decodes.
    pub database: String,
    /// The output plugin.
    pub plugin: String,
    /// PostgreSQL keeps it on standbys (17 and later).
    pub is_failover: bool,
}

/// What is known of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// The oldest transaction whose catalog rows the leader kept when its feedback was first seen there.
    kept_from: Option<u32>,
    is_usable: bool,
}

/// The `catalog_xmin` that decide whether a copy is usable; absent where a slot has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogXmins {
    /// Of the slot on the leader through which the feedback of this member arrives.
    pub feedback: Option<u32>,
    /// Of the leader's own slot.
    pub leaders: Option<u32>,
    /// Of the copy here.
    pub copy: Option<u32>,
}

/// Whether transaction `one` is older than `other`; numbers wrap around.
fn is_older(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) > u32::MAX / 2
}

impl Proof {
    /// Takes one look in. Usable is a copy whose rows the leader keeps for it now, and kept for its own slot
    /// until then: its own slot only moves forward, so what it kept at the first look it had always kept.
    pub fn look(&mut self, seen: CatalogXmins) {
        let (Some(feedback), Some(leaders), Some(copy)) = (seen.feedback, seen.leaders, seen.copy)
        else {
            self.kept_from = None;
            return;
        };
        if is_older(copy, feedback) {
            *self = Self::default();
            return;
        }
        let kept_from = *self.kept_from.get_or_insert(leaders);
        self.is_usable |= !is_older(copy, kept_from);
    }
}

/// How the name of the file of WAL with `position` ends, whatever its timeline (pure).
fn segment_suffix(position: Lsn, segment_bytes: u64) -> String {
    let segments_per_id = (1_u64 << 32) / segment_bytes.max(1);
    let number = position.0 / segment_bytes.max(1);
    format!(
        "{:08X}{:08X}",
        number / segments_per_id.max(1),
        number % segments_per_id.max(1)
    )
}

/// One line of the leader's answer: name, position from which it reads WAL, and its state file (pure).
fn parse_state(line: &str) -> Option<(String, Lsn, Vec<u8>)> {
    let mut words = line.split(' ');
    let (name, from, hex) = (words.next()?, words.next()?, words.next()?);
    let digits = hex.as_bytes();
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let bytes = bytes.filter(|bytes| !bytes.is_empty())?;
    Some((name.to_owned(), from.parse().ok()?, bytes))
}

fn list(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| quote_literal(name)).collect();
    quoted.join(", ")
}

/// The same instance, in another database.
fn in_database(config: &PostgresConfig, database: &str) -> Target {
    Target::local(&PostgresConfig {
        database: database.to_owned(),
        ..config.clone()
    })
}

impl Postgres {
    /// Creates a logical slot on a primary; one that exists is left as it is.
    pub async fn create_logical_slot(&self, slot: &NewSlot) -> Result<(), PostgresError> {
        let (name, plugin) = (quote_literal(&slot.name), quote_literal(&slot.plugin));
        let failover = if slot.is_failover {
            ", false, false, true"
        } else {
            ""
        };
        let sql = format!(
            "SELECT pg_catalog.pg_create_logical_replication_slot({name}, {plugin}{failover})::text \
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {name})"
        );
        let target = in_database(&self.config(), &slot.database);
        target.query_once(&sql, CREATE_LIMIT).await?;
        Ok(())
    }

    /// Moves an idle logical slot of a standby forward to `to`, never beyond what was replayed here.
    pub async fn advance_logical_slot(
        &self,
        name: &str,
        database: &str,
        to: Lsn,
    ) -> Result<(), PostgresError> {
        let name = quote_literal(name);
        let sql = format!(
            "SELECT pg_catalog.pg_replication_slot_advance(slot_name, \
             least('{to}'::pg_lsn, pg_catalog.pg_last_wal_replay_lsn()))::text \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = {name} AND NOT active \
             AND slot_type = 'logical' AND pg_catalog.pg_is_in_recovery() \
             AND confirmed_flush_lsn < '{to}'::pg_lsn"
        );
        let target = in_database(&self.config(), database);
        target.query_once(&sql, ADVANCE_LIMIT).await?;
        Ok(())
    }

    /// Copies these slots of the leader: reads their files there, writes them beside their places, stops the
    /// instance by `stop`, and puts them in place. Whoever starts the instance again has them.
    ///
    /// # Errors
    ///
    /// [`PostgresError::SlotNeedsOlderWal`] also where the others were copied: one slot whose consumer lags must
    /// not keep them away. Nothing is stopped where none can be copied.
    pub async fn copy_logical_slots(
        &self,
        source: &Upstream,
        names: &[String],
        stop: &StopPlan,
    ) -> Result<(), PostgresError> {
        let config = self.config();
        let states = self.states_of(&config, source, names).await?;
        let segment_bytes = self.control_data().await?.wal_segment_bytes;
        let is_here =
            |from: Lsn| has_segment(&config.data_dir, &segment_suffix(from, segment_bytes));
        let (ready, mut refused): (Vec<_>, Vec<_>) =
            states.iter().partition(|(_, from, _)| is_here(*from));
        for (name, _, bytes) in &ready {
            stage_slot(&config.data_dir, name, bytes)?;
        }
        if !ready.is_empty() {
            self.stop(stop).await?;
        }
        for state in ready {
            // The stop itself ends with a restartpoint, which may remove WAL.
            if is_here(state.1) {
                place_slot(&config.data_dir, &state.0)?;
                self.forget_proof(&state.0);
            } else {
                refused.push(state);
            }
        }
        match refused.first() {
            None => Ok(()),
            Some((slot, from, _)) => Err(PostgresError::SlotNeedsOlderWal {
                slot: slot.clone(),
                from: *from,
            }),
        }
    }

    async fn states_of(
        &self,
        config: &PostgresConfig,
        source: &Upstream,
        names: &[String],
    ) -> Result<Vec<(String, Lsn, Vec<u8>)>, PostgresError> {
        let sql = format!(
            "SELECT slot_name || ' ' || restart_lsn || ' ' || pg_catalog.encode(\
             pg_catalog.pg_read_binary_file('pg_replslot/' || slot_name || '/state'), 'hex') \
             FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary \
             AND wal_status <> 'lost' AND NOT pg_catalog.pg_is_in_recovery() AND slot_name IN ({})",
            list(names)
        );
        let server = rewind_conninfo(config, source);
        super::files::write_pgpass(config)?;
        let answer = self.ask_source(config, &server, &sql).await?;
        let states: Vec<_> = answer.lines().filter_map(parse_state).collect();
        match names
            .iter()
            .find(|name| !states.iter().any(|(of, ..)| of == *name))
        {
            Some(missing) => Err(PostgresError::SlotNotThere {
                slot: missing.clone(),
                source_address: format!("{}:{}", source.host, source.port),
            }),
            None => Ok(states),
        }
    }

    /// Looks whether these copies are usable. The slot of `source` is the one through which the feedback of
    /// this member arrives there.
    pub async fn prove_logical_slots(
        &self,
        source: &Upstream,
        names: &[String],
    ) -> Result<(), PostgresError> {
        let config = self.config();
        let through = source.slot.clone().unwrap_or_default();
        let sql = format!(
            "SELECT slot_name || ' ' || catalog_xmin FROM pg_catalog.pg_replication_slots \
             WHERE catalog_xmin IS NOT NULL AND slot_name IN ({}, {})",
            quote_literal(&through),
            list(names)
        );
        super::files::write_pgpass(&config)?;
        let server = rewind_conninfo(&config, source);
        let there = xmins(self.ask_source(&config, &server, &sql).await?.lines());
        let here = self.query(&sql, STATEMENT_LIMIT).await?;
        let here = xmins(here.iter().map(String::as_str));
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            proofs.entry(name.clone()).or_default().look(CatalogXmins {
                feedback: there.get(&through).copied(),
                leaders: there.get(name).copied(),
                copy: here.get(name).copied(),
            });
        }
        Ok(())
    }

    /// Whether the copy of this name was found to be usable.
    pub fn is_proved(&self, name: &str) -> bool {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.get(name).is_some_and(|proof| proof.is_usable)
    }

    fn forget_proof(&self, name: &str) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.remove(name);
    }

    /// What a primary once proved as a standby says nothing of the standby it may become.
    pub(crate) fn forget_proofs(&self) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.clear();
    }
}

fn xmins<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<String, u32> {
    lines
        .filter_map(|line| {
            let (name, xmin) = line.split_once(' ')?;
            Some((name.to_owned(), xmin.parse().ok()?))
        })
        .collect()
}

fn has_segment(data_dir: &Path, suffix: &str) -> bool {
    let entries = fs::read_dir(data_dir.join("pg_wal")).into_iter().flatten();
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        name.to_str()
            .is_some_and(|name| name.len() == 24 && name.ends_with(suffix))
    })
}

/// Where the state of a slot is kept until the instance has stopped. PostgreSQL removes a folder of such a name
/// when it starts, so that an interrupted copy leaves nothing.
fn staged(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join("pg_replslot").join(format!("{name}.tmp"))
}

/// Writes the state of a slot beside its place. The instance may run: whatever can fail is done before it stops.
fn stage_slot(data_dir: &Path, name: &str, state: &[u8]) -> Result<(), PostgresError> {
    let made = staged(data_dir, name);
    if made.exists() {
        fs::remove_dir_all(&made).map_err(PostgresError::file("remove", &made))?;
    }
    let mut folder = fs::DirBuilder::new();
    let made_folder = folder.mode(0o700).create(&made);
    made_folder.map_err(PostgresError::file("create", &made))?;
    let path = made.join("state");
    let write = || {
        let mut file = File::create(&path)?;
        file.set_permissions(PermissionsExt::from_mode(0o600))?;
        file.write_all(state)?;
        file.sync_all()?;
        File::open(&made)?.sync_all()
    };
    write().map_err(PostgresError::file("write", &path))
}

/// Puts a staged slot of a stopped instance in its place.
fn place_slot(data_dir: &Path, name: &str) -> Result<(), PostgresError> {
    let slots = data_dir.join("pg_replslot");
    let place = slots.join(name);
    if place.exists() {
        fs::remove_dir_all(&place).map_err(PostgresError::file("remove", &place))?;
    }
    let put = fs::rename(staged(data_dir, name), &place);
    put.map_err(PostgresError::file("put in place", &place))?;
    sync_directory(&slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(feedback: u32, leaders: u32, copy: u32) -> CatalogXmins {
        CatalogXmins {
            feedback: Some(feedback),
            leaders: Some(leaders),
            copy: Some(copy),
        }
    }

    #[test]
    fn a_copy_is_usable_once_it_passed_what_the_leader_kept_when_its_feedback_arrived() {
        let mut proof = Proof::default();
        proof.look(CatalogXmins {
            feedback: None,
            ..seen(0, 700, 690)
        });
        assert!(!proof.is_usable, "nothing protects it");
        proof.look(seen(695, 700, 690));
        assert!(!proof.is_usable, "protected from too late on");
        proof.look(seen(690, 710, 690));
        assert!(!proof.is_usable, "rows between 690 and 710 may be gone");
        proof.look(seen(705, 720, 705));
        assert!(!proof.is_usable);
        proof.look(seen(710, 730, 710));
        assert!(proof.is_usable);
        proof.look(seen(710, 750, 720));
        assert!(proof.is_usable);
        proof.look(seen(750, 750, 720));
        assert!(!proof.is_usable, "its feedback was lost for a while");
    }

    #[test]
    fn transactions_are_compared_around_the_wrap() {
        assert!(is_older(u32::MAX - 5, 10));
        assert!(!is_older(10, u32::MAX - 5));
        assert!(!is_older(7, 7));
        let mut proof = Proof::default();
        proof.look(seen(u32::MAX - 1, u32::MAX - 1, 3));
        assert!(proof.is_usable);
    }

    #[test]
    fn the_file_of_a_position_is_known_whatever_its_timeline() {
        let mb16 = 16 * 1024 * 1024;
        assert_eq!(segment_suffix(Lsn(0x1_0300_0148), mb16), "0000000100000003");
        assert_eq!(
            segment_suffix(Lsn(0x0300_0148), 1 << 20),
            "0000000000000030"
        );
    }

    #[test]
    fn a_line_of_the_leaders_answer_is_name_position_and_file() {
        let (name, from, bytes) = parse_state("decoded 0/3000148 a1051c").unwrap();
        assert_eq!((name.as_str(), from), ("decoded", Lsn(0x0300_0148)));
        assert_eq!(bytes, [0xa1, 0x05, 0x1c]);
        assert_eq!(parse_state("decoded 0/3000148 "), None);
        assert_eq!(parse_state("decoded  a1"), None);
    }

    #[test]
    fn a_copied_slot_takes_the_place_of_what_an_interrupted_copy_left() {
        let data = tempfile::tempdir().unwrap();
        let slots = data.path().join("pg_replslot");
        fs::create_dir_all(slots.join("decoded.tmp")).unwrap();
        for state in [b"state", b"newer"] {
            stage_slot(data.path(), "decoded", state).unwrap();
            place_slot(data.path(), "decoded").unwrap();
        }
        assert_eq!(fs::read(slots.join("decoded/state")).unwrap(), b"newer");
        assert!(!slots.join("decoded.tmp").exists());
    }
}
