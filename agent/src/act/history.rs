//! The `history` record: the timeline's own history file, with time and leader of each promotion.

use std::sync::Arc;

use trunkline_shared::cluster::switchover::LeaderChange;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{Lsn, Timeline};
use trunkline_shared::dcs::records::{
    HistoryLine, changes_from_json, history_lines, history_to_json, leader_changes_to_json,
};
use trunkline_shared::dcs::{Compare, Operation, Revision, Txn};
use trunkline_shared::service::clock;

use super::{ActError, Actor};
use crate::decide::observation::{Local, Observation, RunningRole};
use crate::postgres::PostgresError;

impl Actor {
    pub(super) async fn record_history(&self, seen: &Observation) -> Result<Revision, ActError> {
        let Local::Running(running) = &seen.local else {
            return Err(ActError::NotAllowed(
                "only a running instance has a history",
            ));
        };
        let file = format!("{:08X}.history", running.timeline.0);
        let path = self.postgres.config().data_dir.join("pg_wal").join(file);
        let text = match tokio::fs::read_to_string(&path).await {
            Ok(text) => text,
            // A standby that replays an archive has it once a segment of the timeline was restored.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && matches!(running.role, RunningRole::Replica { .. }) =>
            {
                return Ok(0);
            }
            Err(source) => {
                let what = "read";
                return Err(PostgresError::File { what, path, source }.into());
            }
        };
        let key = self.keys.path(&FactKey::History);
        let read = Txn {
            then: vec![Operation::Get(key.clone())],
            ..Txn::default()
        };
        let recorded = self.dcs.commit(&read).await?.entries.into_iter().next();
        let lines = recorded
            .as_ref()
            .and_then(|entry| history_lines(std::str::from_utf8(&entry.value).ok()?).ok())
            .unwrap_or_default();
        let now = clock::wall_clock().rfc3339();
        let mut merged = merge(&text, &lines, &now, self.me.name.as_str());
        let limit = seen.settings().max_timelines_history;
        if limit > 0 && merged.len() > limit {
            merged.drain(..merged.len() - limit);
        }
        let as_seen = match recorded {
            Some(entry) => Compare::ModRevision(key.clone(), entry.mod_revision),
            None => Compare::Absent(key.clone()),
        };
        let put = Operation::Put {
            key,
            value: history_to_json(&merged).into_bytes(),
            lease: 0,
        };
        self.write("history", vec![self.still_leads(seen)?, as_seen], vec![put])
            .await
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
