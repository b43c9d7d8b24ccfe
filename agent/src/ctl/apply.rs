//! `apply`: puts parameters that wait for a restart, or new programs of PostgreSQL, into force, member by member, with one change
//! of leader and no other interruption. It stops at the first failure and says what it left.

use std::time::Duration;

use hyper::Method;
use serde_json::{Map, Value, json};
use trunkline_shared::cluster::{Lsn, Member, MemberName, MemberState, Topology};
use trunkline_shared::dcs::Revision;
use trunkline_shared::dcs::records::state_word;
use trunkline_shared::service::clock;

use super::arguments::{Apply, Format};
use super::members::failed;
use super::rest::{Answer, request};
use super::table::{Column, Table};
use super::terminal::Label;
use super::{CtlError, Session, change, restarting};
use crate::api::requests::{ChangeOfLeader, Kind, Refusal};

mod plan;

use plan::{Round, Rule, Step, plan};

/// How long a member may take to be back after its restart.
const LONGEST: Duration = Duration::from_secs(600);

/// How long the record of a member that serves may go on saying that a restart is waited for: an agent writes such
/// a change at once.
const RECORD: Duration = Duration::from_secs(5);

/// How often a wait looks whether it has become too long.
const LOOK: Duration = Duration::from_millis(500);

/// `trunkline apply`
pub(super) async fn apply(session: &Session, asked: &Apply) -> Result<(), CtlError> {
    if asked.format == Format::Pretty {
        let mut work = Work::new(session, asked);
        return work.run().await;
    }
    let beside = session.beside();
    let mut work = Work::new(&beside, asked);
    let run = work.run().await;
    let table = table(&work.steps, &work.tried, asked.dry_run);
    session.terminal.print(&table.render(asked.format))?;
    run
}

/// What became of a step that was tried, and how long it took.
type Tried = (Result<String, String>, Duration);

/// The steps, and how far they have come.
struct Work<'s> {
    session: &'s Session,
    asked: &'s Apply,
    steps: Vec<Step>,
    /// The first of them that were tried.
    tried: Vec<Tried>,
}

impl<'s> Work<'s> {
    fn new(session: &'s Session, asked: &'s Apply) -> Self {
        Self {
            session,
            asked,
            steps: Vec::new(),
            tried: Vec::new(),
        }
    }

    async fn run(&mut self) -> Result<(), CtlError> {
        let (session, asked) = (self.session, self.asked);
        let (_follow, view) = session.known().await?;
        let cluster = &session.cluster;
        let rule = Rule {
            is_all: asked.all,
            keeps_leader: asked.no_switchover,
        };
        self.steps = plan(&view.topology, rule).map_err(CtlError::Failed)?;
        if self.steps.is_empty() {
            let text = format!("No member of cluster {cluster} waits for a restart");
            return session.terminal.success(&text);
        }
        let line = format!("Plan for cluster {cluster}:");
        session.terminal.line(&line)?;
        for (number, step) in (1..).zip(&self.steps) {
            let line = format!("  {number}. {}", step.told(&view.topology));
            session.terminal.line(&line)?;
        }
        if asked.dry_run {
            return session.terminal.line("Nothing was done: --dry-run");
        }
        if !asked.force {
            let question =
                format!("Are you sure you want to restart members of cluster {cluster}?");
            session.terminal.confirm(&question, "Aborted apply").await?;
        }
        let started = clock::now();
        self.all().await?;
        self.verdict(clock::now().since(started)).await
    }

    /// Whether nobody waits any more.
    async fn verdict(&self, took: Duration) -> Result<(), CtlError> {
        let cluster = &self.session.cluster;
        let took = took.as_secs_f64();
        let topology = self.session.look().await?;
        let left = plan(&topology, Rule::default()).map_err(CtlError::Failed)?;
        if left.is_empty() {
            let text = match self.asked.all {
                true => format!(
                    "Success: every member of cluster {cluster} was restarted, after {took:.1} s"
                ),
                false => format!(
                    "Success: no member of cluster {cluster} waits any more, after {took:.1} s"
                ),
            };
            return self.session.terminal.success(&text);
        }
        let left: Vec<String> = left.iter().map(Step::word).collect();
        Err(CtlError::Failed(format!(
            "all is done as planned, and some still wait for a restart (left: {}): was the configuration changed \
             meanwhile? See \"trunkline list\"",
            left.join("; ")
        )))
    }

    async fn all(&mut self) -> Result<(), CtlError> {
        for step in self.steps.clone() {
            self.session.terminal.goes_on(&self.state());
            let started = clock::now();
            let done = self.step(&step).await;
            let took = clock::now().since(started);
            match done {
                Ok(text) => {
                    self.session.terminal.success(&text)?;
                    self.tried.push((Ok(text), took));
                }
                Err(error) => {
                    let why = format!("{error}. {}. {}", self.state(), self.advice());
                    self.tried.push((Err(error.to_string()), took));
                    return Err(CtlError::Failed(why));
                }
            }
        }
        Ok(())
    }

    /// What is done, what is begun and what is not: the first step that was not tried is the one in progress.
    fn state(&self) -> String {
        let listed = |steps: &[Step]| match steps {
            [] => "nothing".to_owned(),
            steps => steps.iter().map(Step::word).collect::<Vec<_>>().join("; "),
        };
        let (done, left) = self.steps.split_at(self.tried.len());
        let (now, later) = left.split_at(left.len().min(1));
        format!(
            "Done: {}. Begun, see \"trunkline list\": {}. Not done: {}",
            listed(done),
            listed(now),
            listed(later)
        )
    }

    fn advice(&self) -> &'static str {
        match self.asked.all {
            true => {
                "Mend that, and restart who is left with trunkline restart and trunkline switchover"
            }
            false => "Mend that, and trunkline apply goes on with what is left",
        }
    }

    /// Does one step; what has come of it.
    async fn step(&self, step: &Step) -> Result<String, CtlError> {
        match step {
            Step::Replica { name, round } => {
                let goal = match round {
                    Round::Only | Round::BeforeLeader => Goal::Received,
                    Round::AfterLeader => Goal::Replayed,
                };
                self.until_it_serves(name, goal).await?;
                let may_wait = *round == Round::BeforeLeader;
                self.restart(name, Some("replica"), may_wait).await
            }
            Step::LeaderInPlace { name, .. } => self.restart(name, None, false).await,
            Step::SwitchOver { from, .. } => self.switch_over(from).await,
            Step::FormerLeader(name) => self.restart_if_it_waits(name).await,
        }
    }

    /// One that was to be restarted as `role` and leads meanwhile refuses: that is another step, with clients held.
    async fn restart(
        &self,
        name: &MemberName,
        role: Option<&str>,
        may_wait: bool,
    ) -> Result<String, CtlError> {
        let topology = self.session.look().await?;
        let member = member(&topology, name)?;
        let started = clock::now();
        let mut body = Map::new();
        if !self.asked.all {
            body.insert("restart_pending".to_owned(), true.into());
        }
        if let Some(role) = role {
            body.insert("role".to_owned(), role.into());
        }
        let asked = (body, &self.asked.drain.drain());
        let answer = restarting::restart(self.session, &topology, member, asked).await?;
        if !matches!(answer, Ok(Answer { status: 200, .. })) {
            return Err(CtlError::Failed(failed("restart", member, &answer)));
        }
        let still_waits = self.until_back(name, member.revision).await?;
        let took = clock::now().since(started).as_secs_f64();
        let text = format!("{name} was restarted and is back after {took:.1} s");
        match (still_waits, may_wait) {
            (false, _) => Ok(text),
            (true, true) => Ok(format!("{text}; what is lowered waits for the leader")),
            (true, false) => Err(CtlError::Failed(format!(
                "{text}, and still waits for a restart: what it lowers its primary may have to lower first; see \
                 pending_restart_reason in GET /patroni"
            ))),
        }
    }

    /// In the change of leader its PostgreSQL was started anew, mostly with the new parameters.
    async fn restart_if_it_waits(&self, name: &MemberName) -> Result<String, CtlError> {
        match self.until_back(name, 0).await? {
            true => self.restart(name, Some("replica"), false).await,
            false => Ok(format!("{name} runs as replica with its parameters")),
        }
    }

    async fn switch_over(&self, from: &MemberName) -> Result<String, CtlError> {
        let change = ChangeOfLeader {
            kind: Kind::Switchover,
            leader: Some(from.clone()),
            candidate: None,
            scheduled_at: None,
            drain: self.asked.drain.drain(),
        };
        let started = clock::now();
        loop {
            let (follow, view) = self.session.follow().await?;
            change.check(&view.topology)?;
            let moving = change::carry_out(self.session, follow, &view.topology, change.clone());
            match moving.await {
                // The leader's agent may not have seen yet that a replica is back.
                Err(CtlError::Refused(Refusal { status: 412, .. }))
                    if clock::now().since(started) < RECORD =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                done => break done?,
            }
        }
        let topology = self.session.look().await?;
        let leader = topology.leader.as_ref().map(|leader| &leader.member);
        Ok(format!(
            "{} leads in place of {from}",
            leader.map_or("nobody", MemberName::as_str)
        ))
    }

    /// Waits until a member serves: running, and streaming unless it leads, as far as the leader was when the wait
    /// began.
    async fn until_it_serves(&self, name: &MemberName, goal: Goal) -> Result<(), CtlError> {
        self.wait(name, goal, |_, _| true).await.map(drop)
    }

    /// The same after its restart, by a record that is newer than this revision; whether it still waits for one.
    async fn until_back(&self, name: &MemberName, before: Revision) -> Result<bool, CtlError> {
        // A record may be older than the restart.
        let is_told = |member: &Member, serves_for: Duration| {
            let is_newer = member.revision > before && !member.has_pending_restart;
            is_newer || serves_for >= RECORD
        };
        self.wait(name, Goal::Received, is_told).await
    }

    /// Whether a member serves. That it lacks little is not believed of its record, which may say where it was two
    /// minutes ago where nothing but little moves: its agent is asked.
    async fn serves(
        &self,
        topology: &Topology,
        member: &Member,
        goal: Goal,
        reach: Lsn,
    ) -> Result<(), String> {
        let by_record = serves(topology, member, goal, reach);
        if by_record.is_ok() || serves(topology, member, goal, Lsn(0)).is_err() {
            return by_record;
        }
        let path = "/patroni";
        let client = self.session.client().map_err(|error| error.to_string())?;
        let asked = request(
            &client,
            &member.api_url,
            Method::GET,
            path,
            String::new(),
            LOOK,
        );
        let answer = asked.await.ok();
        let now = answer.and_then(|answer| with_positions(member, &answer));
        now.map_or(by_record, |now| serves(topology, &now, goal, reach))
    }

    /// Waits until a member serves and `is_enough` is told so of its record and for how long it has served; whether
    /// it waits for a restart then.
    async fn wait(
        &self,
        name: &MemberName,
        goal: Goal,
        is_enough: impl Fn(&Member, Duration) -> bool,
    ) -> Result<bool, CtlError> {
        let (mut follow, view) = self.session.follow().await?;
        let leader = view.topology.leader_member();
        // Of the two that the leader writes, either may be the newer.
        let reach = leader
            .and_then(|leader| leader.position)
            .unwrap_or_default()
            .max(view.topology.status.optime);
        let label = Label::default();
        let waiting = async {
            let started = clock::now();
            let mut served_since = None;
            loop {
                let view = follow.views.borrow_and_update().clone();
                let (topology, now) = (&view.topology, clock::now());
                let member = topology.members.get(name);
                let what = match member {
                    Some(member) => self
                        .serves(topology, member, goal, reach)
                        .await
                        .map(|()| member),
                    None => Err("not registered".to_owned()),
                };
                match what {
                    Ok(member) => {
                        let since = *served_since.get_or_insert(now);
                        if is_enough(member, now.since(since)) {
                            return Ok(member.has_pending_restart);
                        }
                        label.replace(format!("{name} is back; its record is waited for"));
                    }
                    Err(what) => {
                        served_since = None;
                        label.replace(format!("waiting for {name}: {what}"));
                    }
                }
                if now.since(started) > LONGEST {
                    return Err(CtlError::Failed(format!(
                        "{name} does not serve after {} s ({})",
                        LONGEST.as_secs(),
                        label.borrow()
                    )));
                }
                // The clock is looked at also while nothing changes.
                let _ = tokio::time::timeout(LOOK, follow.views.changed()).await;
            }
        };
        self.session.terminal.waiting(&label, waiting).await
    }
}

/// A record with the positions that the member's agent answers.
fn with_positions(member: &Member, answer: &Answer) -> Option<Member> {
    let body: Value = serde_json::from_str(&answer.text).ok()?;
    let position = |name: &str| body.pointer(name)?.as_u64().map(Lsn);
    let received = position("/xlog/received_location");
    let replayed = position("/xlog/replayed_location");
    Some(Member {
        position: received.max(replayed),
        received,
        replayed,
        ..member.clone()
    })
}

/// How far a replica must be.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// It has received everything.
    Received,
    /// It has replayed it, too.
    Replayed,
}

/// What a member does instead of serving.
fn serves(topology: &Topology, member: &Member, goal: Goal, reach: Lsn) -> Result<(), String> {
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    if member.state != MemberState::Running {
        return Err(state_word(member.state).to_owned());
    }
    if leader == Some(&member.name) {
        return Ok(());
    }
    if member.is_streaming != Some(true) {
        return Err("it does not stream yet".to_owned());
    }
    let position = match goal {
        Goal::Received => member.position,
        Goal::Replayed => member.replayed,
    };
    let position = position.unwrap_or_default();
    match position < reach {
        true => Err(format!("at {position}, the leader was at {reach}")),
        false => Ok(()),
    }
}

fn member<'t>(topology: &'t Topology, name: &MemberName) -> Result<&'t Member, CtlError> {
    let found = topology.members.get(name).map(AsRef::as_ref);
    found.ok_or_else(|| CtlError::Failed(format!("{name} is not registered any more")))
}

/// The steps for a machine.
fn table(steps: &[Step], tried: &[Tried], is_dry_run: bool) -> Table {
    let rows = steps.iter().enumerate().map(|(at, step)| {
        let (state, seconds, detail) = match tried.get(at) {
            Some((Ok(text), took)) => ("done", Some(took), text.as_str()),
            Some((Err(why), took)) => ("failed", Some(took), why.as_str()),
            None if is_dry_run => ("planned", None, ""),
            None => ("not done", None, ""),
        };
        vec![
            step.action().into(),
            step.member().as_str().into(),
            state.into(),
            seconds.map_or(Value::Null, |took| json!(took.as_secs_f64())),
            detail.into(),
        ]
    });
    Table {
        title: String::new(),
        columns: vec![
            Column::new("Step", false),
            Column::new("Member", false),
            Column::new("State", false),
            Column::new("Seconds", true),
            Column::new("Detail", false),
        ],
        rows: rows.collect(),
        leaves_out_empty: false,
        delimiter: "\t".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_what_became_of_each_step() {
        let name = |name: &str| MemberName::new(name);
        let round = Round::Only;
        let steps = [
            Step::Replica {
                name: name("b"),
                round,
            },
            Step::Replica {
                name: name("c"),
                round,
            },
            Step::FormerLeader(name("a")),
        ];
        let tried = [
            (Ok("b is back".to_owned()), Duration::from_millis(1500)),
            (Err("c is not".to_owned()), Duration::from_millis(250)),
        ];
        assert_eq!(
            table(&steps, &tried, false).render(Format::Tsv),
            "Step\tMember\tState\tSeconds\tDetail\n\
             restart replica\tb\tdone\t1.5\tb is back\n\
             restart replica\tc\tfailed\t0.25\tc is not\n\
             restart former leader\ta\tnot done\t\t\n"
        );
    }
}
