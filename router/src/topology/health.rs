//! The router's own probes of the members. They may only take a member out, and only as a reader: who
//! leads is never decided by a probe.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use trunkline_shared::cluster::MemberName;

/// Between two probes of a member.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a member may take to answer one.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// Failed probes in a row that take a member out.
const FALL: u8 = 3;

/// The probe: a request for TLS, which PostgreSQL answers with one byte and without a log line.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// One round of probes: who answered.
#[derive(Debug, Default)]
pub struct Report {
    answers: Vec<(MemberName, bool)>,
}

/// Failed probes in a row, by member.
#[derive(Debug, Default)]
pub struct Streaks {
    failed: BTreeMap<MemberName, u8>,
}

impl Streaks {
    /// Counts a round. One good answer brings a member back: it only opens the way for the other rules.
    pub fn take(&mut self, report: Report, down: &mut BTreeSet<MemberName>) {
        let mut failed = BTreeMap::new();
        for (member, is_answering) in report.answers {
            if is_answering {
                down.remove(&member);
                continue;
            }
            let count = self.failed.get(&member).copied().unwrap_or(0);
            let count = count.saturating_add(1);
            if count >= FALL {
                down.insert(member.clone());
            }
            failed.insert(member, count);
        }
        // Members that were not probed have left the cluster.
        down.retain(|member| failed.contains_key(member));
        self.failed = failed;
    }
}

/// Probes all members at once and reports when the slowest is done.
pub async fn probe_all(members: Vec<(MemberName, Vec<SocketAddr>)>, reports: mpsc::Sender<Report>) {
    let tasks: Vec<_> = members
        .into_iter()
        .map(|(name, places)| (name, tokio::spawn(probe(places))))
        .collect();
    let mut report = Report::default();
    for (name, task) in tasks {
        report.answers.push((name, task.await.unwrap_or(false)));
    }
    // The keeper has ended if nobody takes it.
    let _ = reports.send(report).await;
}

async fn probe(places: Vec<SocketAddr>) -> bool {
    let answer = async {
        for place in places {
            if ask(place).await.is_ok() {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(PROBE_TIME, answer)
        .await
        .unwrap_or(false)
}

async fn ask(place: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect(place).await?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(streaks: &mut Streaks, down: &mut BTreeSet<MemberName>, answers: &[(&str, bool)]) {
        let answers = answers
            .iter()
            .map(|(name, answer)| (MemberName::new(name), *answer))
            .collect();
        streaks.take(Report { answers }, down);
    }

    #[test]
    fn three_failures_take_a_member_out_and_one_answer_brings_it_back() {
        let (mut streaks, mut down) = (Streaks::default(), BTreeSet::new());
        round(&mut streaks, &mut down, &[("a", false), ("b", true)]);
        round(&mut streaks, &mut down, &[("a", false), ("b", true)]);
        assert!(down.is_empty());
        round(&mut streaks, &mut down, &[("a", false), ("b", false)]);
        assert_eq!(
            down.iter().map(MemberName::as_str).collect::<Vec<_>>(),
            ["a"]
        );
        round(&mut streaks, &mut down, &[("a", true), ("b", true)]);
        assert!(down.is_empty());
    }

    #[test]
    fn a_member_that_left_is_forgotten() {
        let (mut streaks, mut down) = (Streaks::default(), BTreeSet::new());
        for _ in 0..3 {
            round(&mut streaks, &mut down, &[("a", false)]);
        }
        round(&mut streaks, &mut down, &[]);
        assert!(down.is_empty() && streaks.failed.is_empty());
    }
}
