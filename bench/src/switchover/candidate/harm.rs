//! What happens to the candidate in the middle of a change: it dies, hangs or lags, until it is healed.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::process::Signal;
use serde::Serialize;
use tokio_postgres::Client;

use super::steps::Step;
use crate::fault::node::{self, Frozen};
use crate::stack::member::Member;
use crate::stack::proc::ProcessId;
use crate::stack::{APP, Stack};

/// How long a killed agent may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The table whose lock keeps replay waiting.
const BLOCKED: &str = "CREATE TABLE IF NOT EXISTS blocked (nothing int)";
/// A transaction of the candidate that goes on reading it.
pub const READ: &str = "BEGIN; SELECT count(*) FROM blocked";
/// What the leader does to it: an exclusive lock, which replay waits for.
pub const BLOCK: &str = "TRUNCATE blocked";

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    /// SIGKILL to agent, fence and PostgreSQL
    KillNode,
    /// SIGKILL to the postmaster
    KillPostgres,
    /// SIGKILL to the agent
    KillAgent,
    /// SIGSTOP to the agent
    FreezeAgent,
    /// Agent, fence and PostgreSQL stand still: by the cgroup as root, else by SIGSTOP
    FreezeNode,
    /// No packet comes or goes; needs root
    CutNode,
    /// Replay is paused
    PauseReplay,
    /// Replay waits for the lock of a query
    BlockReplay,
    /// SIGSTOP to the WAL receiver
    FreezeReceiver,
}

impl Harm {
    /// Its name, as on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The last step at which it means something: nothing is replayed any more once the candidate has the last record,
    /// and only a running leader takes the lock.
    pub fn last_step(self) -> Step {
        match self {
            Harm::KillNode
            | Harm::KillPostgres
            | Harm::KillAgent
            | Harm::FreezeAgent
            | Harm::FreezeNode
            | Harm::CutNode => Step::Promoted,
            Harm::PauseReplay | Harm::FreezeReceiver => Step::Confirmed,
            Harm::BlockReplay => Step::HoldAll,
        }
    }

    /// Whether the candidate's agent goes on and reaches the others.
    pub fn leaves_agent(self) -> bool {
        match self {
            Harm::KillNode
            | Harm::KillAgent
            | Harm::FreezeAgent
            | Harm::FreezeNode
            | Harm::CutNode => false,
            Harm::KillPostgres | Harm::PauseReplay | Harm::BlockReplay | Harm::FreezeReceiver => {
                true
            }
        }
    }

    /// Whether a namespace per node is needed, or of use.
    pub fn wants_namespaces(self) -> bool {
        match self {
            Harm::CutNode => true,
            // Frozen by its cgroup all of it stands still at one moment.
            Harm::FreezeNode => rustix::process::geteuid().is_root(),
            Harm::KillNode
            | Harm::KillPostgres
            | Harm::KillAgent
            | Harm::FreezeAgent
            | Harm::PauseReplay
            | Harm::BlockReplay
            | Harm::FreezeReceiver => false,
        }
    }

    /// Does it to the victim; nothing if it came too late for that.
    pub async fn inflict(
        self,
        stack: &Stack,
        victim: Victim,
        leader: &Client,
    ) -> Result<Option<Wound>> {
        let member = &stack.members[victim.index];
        let cure = match self {
            Harm::KillNode => {
                kill_everything(member, &victim);
                Cure::StartAgent
            }
            Harm::KillPostgres => {
                victim.postmaster.signal(Signal::KILL);
                Cure::Nothing
            }
            Harm::KillAgent => {
                victim.agent.signal(Signal::KILL);
                Cure::StartAgent
            }
            Harm::FreezeAgent => {
                victim.agent.signal(Signal::STOP);
                Cure::Continue(victim.agent)
            }
            Harm::FreezeReceiver => {
                victim.receiver.signal(Signal::STOP);
                Cure::Continue(victim.receiver)
            }
            Harm::FreezeNode => Cure::Thaw(node::freeze(member).await?),
            Harm::CutNode => {
                node::cut_off(member).await?;
                Cure::Reconnect
            }
            Harm::PauseReplay => {
                let pause = victim.sql.batch_execute("SELECT pg_wal_replay_pause()");
                if pause.await.is_err() {
                    return Ok(None);
                }
                Cure::ResumeReplay
            }
            Harm::BlockReplay => {
                victim.sql.batch_execute(READ).await?;
                if leader.batch_execute(BLOCK).await.is_err() {
                    return Ok(None);
                }
                Cure::EndSession
            }
        };
        Ok(Some(Wound { victim, cure }))
    }
}

/// Makes on the leader what any of these needs.
pub async fn prepare(leader: &Client) -> Result<()> {
    leader.batch_execute(BLOCKED).await?;
    Ok(())
}

/// A replica as it was just before a change, so that whatever happens to it happens at once.
pub struct Victim {
    /// Its index among the members.
    pub index: usize,
    everything: Vec<ProcessId>,
    agent: ProcessId,
    postmaster: ProcessId,
    receiver: ProcessId,
    sql: Client,
}

impl Victim {
    /// Looks at one.
    pub async fn look(stack: &Stack, index: usize) -> Result<Victim> {
        let member = &stack.members[index];
        let name = &member.name;
        let sql = member.sql(APP).await?;
        let receiver = sql.query_one("SELECT pid FROM pg_stat_wal_receiver", &[]);
        let receiver = ProcessId::now(receiver.await?.get(0));
        let postmaster = member.postmaster();
        Ok(Victim {
            index,
            everything: member.everything(),
            agent: member.agent()?,
            postmaster: postmaster.with_context(|| format!("{name} has no postmaster"))?,
            receiver: receiver.with_context(|| format!("{name} has no WAL receiver"))?,
            sql,
        })
    }
}

/// A victim that waits for its cure.
pub struct Wound {
    victim: Victim,
    cure: Cure,
}

/// What ends the harm.
enum Cure {
    Nothing,
    StartAgent,
    Continue(ProcessId),
    Thaw(Frozen),
    Reconnect,
    ResumeReplay,
    EndSession,
}

impl Wound {
    /// Ends the harm.
    pub async fn heal(self, stack: &mut Stack) -> Result<()> {
        let Wound { victim, cure } = self;
        let member = &mut stack.members[victim.index];
        match cure {
            // The reading transaction ends with its session.
            Cure::Nothing | Cure::EndSession => Ok(()),
            Cure::StartAgent => {
                member.end(Signal::KILL, END_LIMIT).await?;
                member.start()
            }
            Cure::Continue(process) => {
                process.signal(Signal::CONT);
                Ok(())
            }
            Cure::Thaw(frozen) => frozen.thaw(),
            Cure::Reconnect => node::reconnect(member).await,
            Cure::ResumeReplay => {
                // One that was promoted, or started again since, is not paused any more.
                let resume = victim.sql.batch_execute("SELECT pg_wal_replay_resume()");
                resume.await.ok();
                Ok(())
            }
        }
    }
}

fn kill_everything(member: &Member, victim: &Victim) {
    for id in &victim.everything {
        id.signal(Signal::KILL);
    }
    // What was made between the look and the signal.
    for id in member.everything() {
        id.signal(Signal::KILL);
    }
}
