//! The `history` record: the timeline's own history file, with time and leader of each promotion.

use std::path::PathBuf;
use std::sync::Arc;

use trunkline_shared::cluster::switchover::LeaderChange;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{Lsn, MemberName, Timeline};
use trunkline_shared::dcs::records::{
    HistoryLine, changes_from_json, history_lines, history_to_json, leader_changes_to_json,
};
use trunkline_shared::dcs::{Compare, Dcs, Entry, Operation, Revision, Txn};
use trunkline_shared::service::clock;

use super::{ActError, Actor};
use crate::decide::observation::{Local, Observation, RunningRole};
use crate::postgres::PostgresError;

/// The `history` record as this leader is to write it.
pub(super) struct HistoryRecord {
    dcs: Arc<dyn Dcs>,
    key: String,
    folder: PathBuf,
    me: MemberName,
    limit: usize,
    leads: Compare,
}

impl HistoryRecord {
    /// What stands in the DCS.
    pub(super) async fn read(&self) -> Result<Option<Entry>, ActError> {
        let read = Txn {
            then: vec![Operation::Get(self.key.clone())],
            ..Txn::default()
        };
        Ok(self.dcs.commit(&read).await?.entries.into_iter().next())
    }

    /// Writes the history of this timeline over what stands there; nothing where PostgreSQL has no file of it.
    pub(super) async fn write(
        &self,
        timeline: Timeline,
        recorded: Option<Entry>,
    ) -> Result<Revision, ActError> {
        let path = self.folder.join(format!("{:08X}.history", timeline.0));
        let text = match tokio::fs::read_to_string(&path).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(source) => {
                let what = "read";
                return Err(PostgresError::File { what, path, source }.into());
            }
        };
        let lines = recorded
            .as_ref()
            .and_then(|entry| history_lines(std::str::from_utf8(&entry.value).ok()?).ok())
            .unwrap_or_default();
        let now = clock::wall_clock().rfc3339();
        let mut merged = merge(&text, &lines, &now, self.me.as_str());
        if self.limit > 0 && merged.len() > self.limit {
            merged.drain(..merged.len() - self.limit);
        }
        let revision = recorded.map_or(0, |entry| entry.mod_revision);
        let txn = Txn {
            when: vec![
                self.leads.clone(),
                Compare::as_seen(self.key.clone(), revision),
            ],
            then: vec![Operation::Put {
                key: self.key.clone(),
                value: history_to_json(&merged).into_bytes(),
                lease: 0,
            }],
            otherwise: Vec::new(),
        };
        let committed = self.dcs.commit(&txn).await?;
        if !committed.succeeded {
            return Err(ActError::Changed("history"));
        }
        Ok(committed.header.revision)
    }
}

impl Actor {
    /// An error of who does not lead.
    pub(super) fn history_record(&self, seen: &Observation) -> Result<HistoryRecord, ActError> {
        Ok(HistoryRecord {
            dcs: self.dcs.clone(),
            key: self.keys.path(&FactKey::History),
            folder: self.postgres.config().data_dir.join("pg_wal"),
            me: self.me.name.clone(),
            limit: seen.settings().max_timelines_history,
            leads: self.still_leads(seen)?,
        })
    }

    pub(super) async fn record_history(&self, seen: &Observation) -> Result<Revision, ActError> {
        let Local::Running(running) = &seen.local else {
            return Err(ActError::NotAllowed(
                "only a running instance has a history",
            ));
        };
        let record = self.history_record(seen)?;
        let recorded = record.read().await?;
        let revision = record.write(running.timeline, recorded).await?;
        // A standby that replays an archive has the file once a segment of the timeline was restored.
        if revision == 0 && matches!(running.role, RunningRole::Primary { .. }) {
            let path = record
                .folder
                .join(format!("{:08X}.history", running.timeline.0));
            return Err(PostgresError::File {
                what: "read",
                path,
                source: std::io::ErrorKind::NotFound.into(),
            }
            .into());
        }
        Ok(revision)
    }
}

/// So many past changes of leader are kept.
const MOST_CHANGES: usize = 100;

impl Actor {
    /// Adds the change, unless it stands there; a list that cannot be read is begun anew.
    pub(super) async fn record_change(
        &self,
        seen: &Observation,
        change: &LeaderChange,
    ) -> Result<Revision, ActError> {
        let key = self.keys.path(&FactKey::Changes);
        let read = Txn {
            then: vec![Operation::Get(key.clone())],
            ..Txn::default()
        };
        let recorded = self.dcs.commit(&read).await?.entries.into_iter().next();
        let text = recorded
            .as_ref()
            .and_then(|entry| std::str::from_utf8(&entry.value).ok());
        let mut changes = text
            .and_then(|text| changes_from_json(text).ok())
            .unwrap_or_default();
        changes.retain(|known| known.epoch < change.epoch);
        changes.push(LeaderChange {
            at: Arc::from(clock::wall_clock().rfc3339().as_str()),
            ..change.clone()
        });
        changes.drain(..changes.len().saturating_sub(MOST_CHANGES));
        let revision = recorded.map_or(0, |entry| entry.mod_revision);
        let when = vec![self.still_leads(seen)?, Compare::as_seen(key, revision)];
        let put = self.put(&FactKey::Changes, leader_changes_to_json(&changes));
        self.write("trunkline/history", when, vec![put]).await
    }
}

/// The lines of a `.history` file; time and leader come from the record where it has the line, and from
/// this promotion for the last line.
fn merge(file: &str, recorded: &[HistoryLine], now: &str, me: &str) -> Vec<HistoryLine> {
    let mut lines: Vec<HistoryLine> = file.lines().filter_map(parse_line).collect();
    let last = lines.last().map(|line| line.timeline);
    for line in &mut lines {
        let same = |r: &&HistoryLine| r.timeline == line.timeline && r.end == line.end;
        match recorded.iter().find(same) {
            Some(known) => {
                line.time.clone_from(&known.time);
                line.leader.clone_from(&known.leader);
            }
            None if Some(line.timeline) == last => {
                line.time = Some(now.to_owned());
                line.leader = Some(me.to_owned());
            }
            None => {}
        }
    }
    lines
}

/// Timeline, position and reason, with tabs between.
fn parse_line(line: &str) -> Option<HistoryLine> {
    let mut cells = line.trim().splitn(3, '\t');
    Some(HistoryLine {
        timeline: Timeline(cells.next()?.trim().parse().ok()?),
        end: cells.next()?.trim().parse::<Lsn>().ok()?,
        reason: cells.next().unwrap_or_default().to_owned(),
        time: None,
        leader: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_line_gets_time_and_leader_and_older_ones_keep_theirs() {
        let file = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tswitch\n";
        let first = merge(
            "1\t0/3000148\tno recovery target specified\n",
            &[],
            "t1",
            "a",
        );
        assert_eq!(first[0].leader.as_deref(), Some("a"));
        let both = merge(file, &first, "t2", "b");
        let shown: Vec<_> = both
            .iter()
            .map(|l| {
                (
                    l.timeline.0,
                    l.end.0,
                    l.time.as_deref(),
                    l.leader.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (1, 0x0300_0148, Some("t1"), Some("a")),
                (2, 0x0500_0000, Some("t2"), Some("b"))
            ]
        );
    }
}
