//! An observation as the lines of a script: parsing them again leads to the same decision. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{ClusterSettings, Member, Moment, SystemId, Topology};

use super::names::{role_word, state_word};
use super::{changes, failsafe, instance, slots, store, synchronous};
use crate::decide::callbacks::Told;
use crate::decide::memory::Memory;
use crate::decide::observation::{
    BootstrapKind, CrashPolicy, DcsView, Due, JobView, LeaseView, Local, LocalRequest, Looked,
    Observation, PeerAnswer, Peers, Running, RunningRole, SourceTrouble, WatchdogView,
};

/// The lines that describe what was seen and remembered; `decide` is to be added by who wants the answer.
pub fn to_script(seen: &Observation, memory: &Memory) -> String {
    let mut out = String::new();
    let me = &seen.me;
    let _ = write!(out, "me name={}", me.name);
    flag(&mut out, me.tags.nofailover, "nofailover");
    flag(&mut out, me.tags.nostream, "nostream");
    option(&mut out, "replicatefrom", me.tags.replicatefrom.as_ref());
    option(&mut out, "priority", me.tags.failover_priority);
    flag(&mut out, !me.may_replace_data, "may_not_replace_data");
    flag(
        &mut out,
        !me.may_replace_unrewound,
        "may_not_replace_unrewound",
    );
    flag(&mut out, me.can_clone_without_leader, "no_leader_method");
    match me.bootstrap {
        BootstrapKind::Initdb => {}
        BootstrapKind::Custom => flag(&mut out, true, "bootstrap=custom"),
        BootstrapKind::CustomRecovering => flag(&mut out, true, "bootstrap=recovering"),
    }
    flag(&mut out, me.has_pre_promote, "pre_promote");
    if !me.callbacks.is_empty() {
        let names: Vec<&str> = me.callbacks.iter().map(|c| c.word()).collect();
        option(&mut out, "callbacks", Some(names.join("/")));
    }
    option(&mut out, "use_pg_rewind", me.use_pg_rewind);
    out.push_str(match me.crash_policy {
        CrashPolicy::Auto => "\n",
        CrashPolicy::Restart => " crash_policy=restart\n",
        CrashPolicy::Failover => " crash_policy=failover\n",
    });
    match &seen.dcs {
        DcsView::Unknown => {
            if let Some(doubt) = &seen.store.doubt {
                print_topology(&mut out, &doubt.before, seen.lost_config.is_some());
                failsafe::print_list(&mut out, &doubt.before);
            }
            out.push_str("dcs unknown\n");
        }
        DcsView::Known { topology, age } => {
            print_topology(&mut out, topology, seen.lost_config.is_some());
            failsafe::print_list(&mut out, topology);
            let _ = writeln!(out, "dcs age={}", seconds(*age));
        }
    }
    store::print(&mut out, &seen.store);
    print_lease(&mut out, &seen.lease, seen.now);
    print_local(&mut out, &seen.local, seen.now);
    print_peers(&mut out, &seen.peers);
    failsafe::print_no_race(&mut out, &seen.no_race, seen.now);
    print_job(&mut out, &seen.job, seen.now);
    print_request(&mut out, seen);
    print_host(&mut out, seen);
    if seen.is_bootstrap_unfinished {
        out.push_str("bootstrap unfinished\n");
    }
    let _ = writeln!(out, "chance {}", seen.chance);
    if seen.is_shutting_down {
        out.push_str("shutdown\n");
    }
    print_memory(&mut out, memory, seen.now);
    out
}

fn print_request(out: &mut String, seen: &Observation) {
    match &seen.request {
        Some(LocalRequest::Restart(drain)) => {
            out.push_str("request restart");
            changes::print_drain(out, drain);
            // A restart is told apart by the revision that it begins at.
            option(out, "at", seen.topology().map(|topology| topology.revision));
            out.push('\n');
        }
        Some(LocalRequest::Reinitialize) => out.push_str("request reinitialize\n"),
        None => {}
    }
}

/// What the machine and its clock say.
fn print_host(out: &mut String, seen: &Observation) {
    out.push_str("fence");
    flag(out, seen.fence.is_live, "live");
    if let Some(deadline) = seen.fence.armed_until {
        let (left, gone) = (seen.now.until(deadline), deadline.until(seen.now));
        let _ = write!(out, " armed left={} gone={}", seconds(left), seconds(gone));
    }
    match seen.fence.watchdog {
        WatchdogView::NotRequired => {}
        WatchdogView::Ready => flag(out, true, "watchdog=ready"),
        WatchdogView::Failed => flag(out, true, "watchdog=failed"),
    }
    out.push('\n');
    out.push_str("health");
    let waits = seen.health.writes_since.map(|at| seen.now.since(at));
    option(out, "write_waits", waits.map(seconds));
    flag(out, seen.health.is_nearly_full, "nearly_full");
    let stopped = seen.health.postmaster_stopped_since;
    let stopped = stopped.map(|at| seen.now.since(at));
    option(out, "postmaster_stopped", stopped.map(seconds));
    out.push('\n');
    let _ = match seen.scheduled {
        None => Ok(()),
        Some(Due::In(left)) => writeln!(out, "scheduled in={}", seconds(left)),
        Some(Due::Ago(late)) => writeln!(out, "scheduled ago={}", seconds(late)),
        Some(Due::Unreadable) => writeln!(out, "scheduled unreadable"),
    };
}

pub(super) fn flag(out: &mut String, is_set: bool, word: &str) {
    if is_set {
        let _ = write!(out, " {word}");
    }
}

pub(super) fn option<T: std::fmt::Display>(out: &mut String, key: &str, value: Option<T>) {
    if let Some(value) = value {
        let _ = write!(out, " {key}={value}");
    }
}

pub(super) fn seconds(duration: Duration) -> String {
    format!("{}.{:09}", duration.as_secs(), duration.subsec_nanos())
}

/// Text as one word in quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace(['"', '\\', '\n'], " "))
}

fn print_settings(out: &mut String, s: &ClusterSettings, is_lost: bool) {
    let _ = write!(
        out,
        "settings ttl={} loop_wait={} retry_timeout={} primary_start_timeout={} \
         maximum_lag_on_failover={} member_slots_ttl={}",
        seconds(s.ttl),
        seconds(s.loop_wait),
        seconds(s.retry_timeout),
        seconds(s.primary_start_timeout),
        s.maximum_lag_on_failover,
        seconds(s.member_slots_ttl),
    );
    flag(out, is_lost, "lost");
    flag(out, s.is_paused, "paused");
    flag(out, !s.use_pg_rewind, "no_rewind");
    flag(out, !s.use_slots, "no_slots");
    flag(out, s.check_timeline, "check_timeline");
    let stop = Some(s.primary_stop_timeout).filter(|limit| !limit.is_zero());
    option(out, "primary_stop_timeout", stop.map(seconds));
    synchronous::print_settings(out, s);
    failsafe::print_settings(out, s);
    // These begin lines of their own.
    slots::print_settings(out, s);
    out.push('\n');
}

fn print_topology(out: &mut String, topology: &Topology, is_config_lost: bool) {
    print_settings(out, &topology.settings_or_default(), is_config_lost);
    if topology.is_config_unknown() {
        out.push_str("settings unreadable\n");
    } else if topology.settings.is_none() {
        out.push_str("settings gone\n");
    }
    out.push_str("initialize ");
    print_initialize(out, topology.initialize);
    if let Some(leader) = &topology.leader {
        let epoch = leader.epoch;
        let _ = writeln!(
            out,
            "leader {} revision={} generation={} lease={}",
            leader.member, epoch.revision, epoch.generation, leader.lease
        );
    }
    for member in topology.members.values() {
        print_member(out, member);
    }
    let claimed = topology.claimed;
    let behind = if topology.is_history_behind {
        " unrecorded"
    } else {
        ""
    };
    let _ = write!(
        out,
        "claimed {}@{}{behind}",
        claimed.timeline, claimed.parent
    );
    let (claim, history) = topology.claim_and_history;
    let revision = Some(claim.max(history)).filter(|at| *at != 0);
    option(out, "revision", revision);
    out.push('\n');
    slots::print_status(out, &topology.status);
    synchronous::print_record(out, topology);
    if let Some(request) = &topology.failover {
        let _ = write!(out, "failover revision={}", request.revision);
        option(out, "leader", request.leader.as_ref());
        option(out, "candidate", request.candidate.as_ref());
        option(out, "at", request.scheduled_at.as_deref().map(quoted));
        changes::print_drain(out, &request.drain);
        out.push('\n');
    }
    print_switchover(out, topology);
    changes::print_routers(out, topology);
    if let Some(epoch) = topology.last_change {
        let _ = writeln!(out, "recorded {}@{}", epoch.generation, epoch.revision);
    }
    if !topology.history.ends().is_empty() {
        out.push_str("history");
        for end in topology.history.ends() {
            let _ = write!(out, " {}@{}", end.timeline, end.end);
        }
        out.push('\n');
    }
    if !topology.disarmed.is_empty() {
        out.push_str("disarmed");
        topology
            .disarmed
            .iter()
            .for_each(|name| flag(out, true, name.as_str()));
        out.push('\n');
    }
}

fn print_initialize(out: &mut String, initialize: Initialize) {
    let _ = match initialize {
        Initialize::Absent => writeln!(out, "absent"),
        Initialize::Running => writeln!(out, "running"),
        Initialize::Done(id) => writeln!(out, "{id}"),
    };
}

fn print_switchover(out: &mut String, topology: &Topology) {
    let Some(record) = &topology.switchover else {
        return;
    };
    let _ = write!(
        out,
        "switchover id={} epoch={} from={} to={} stage={}",
        record.id,
        record.epoch.revision,
        record.from,
        record.to,
        changes::stage_text(record.stage)
    );
    let revision = Some(topology.switchover_revision);
    option(out, "revision", revision.filter(|it| *it != 0));
    changes::print_parts(out, &record.parts);
    out.push('\n');
}

fn print_member(out: &mut String, member: &Member) {
    let _ = write!(
        out,
        "member {} role={} state={} lease={} revision={}",
        member.name,
        role_word(member.role),
        state_word(member.state),
        member.lease,
        member.revision
    );
    let usual = format!("{}:5432", member.name);
    let address = Some(member.address.as_ref()).filter(|address| *address != usual);
    option(out, "address", address.map(quoted));
    let api_url = Some(member.api_url.as_ref()).filter(|url| !url.is_empty());
    option(out, "api_url", api_url.map(quoted));
    option(out, "tl", member.timeline);
    option(out, "position", member.position);
    flag(out, member.is_streaming == Some(true), "streaming");
    flag(out, member.tags.clonefrom, "clonefrom");
    flag(out, member.tags.nostream, "nostream");
    option(out, "replicatefrom", member.tags.replicatefrom.as_ref());
    synchronous::print_tags(out, &member.tags);
    flag(out, !member.is_checkpointed_after_promote, "unchecked");
    flag(out, !member.is_trunkline(), "patroni");
    if let Some(fields) = &member.trunkline {
        flag(out, fields.has_watchdog_failed, "watchdog_failed");
        option(out, "system_id", fields.system_id.map(|id| id.0));
        if let Some(ready) = fields.ready {
            let _ = write!(out, " ready={}@{}", ready.id, ready.replayed);
        }
    }
    out.push('\n');
}

fn print_lease(out: &mut String, lease: &LeaseView, now: Moment) {
    match lease {
        LeaseView::NotHeld => out.push_str("lease none\n"),
        LeaseView::Lost => out.push_str("lease lost\n"),
        LeaseView::Held(held) => {
            let (left, gone) = (now.until(held.deadline), held.deadline.until(now));
            let _ = write!(
                out,
                "lease held left={} gone={} revision={} generation={}",
                seconds(left),
                seconds(gone),
                held.epoch.revision,
                held.epoch.generation
            );
            flag(out, held.is_key_missing, "missing");
            flag(out, held.has_unresolved_hand_over, "unresolved");
            flag(out, held.is_by_failsafe, "by_failsafe");
            out.push('\n');
        }
    }
}

fn print_local(out: &mut String, local: &Local, now: Moment) {
    let ago = |at: Moment| seconds(now.since(at));
    let _ = match local {
        Local::Empty => write!(out, "local empty"),
        Local::Unknown(why) => write!(out, "local unknown why={}", quoted(why)),
        Local::Starting {
            since,
            as_primary,
            system_id,
        } => {
            let _ = write!(out, "local starting {}", role_of(*as_primary));
            let _ = write!(out, " since={}", ago(*since));
            print_identity(out, *system_id)
        }
        Local::Unresponsive {
            since,
            was_primary,
            system_id,
        } => {
            let _ = write!(out, "local unresponsive {}", role_of(*was_primary));
            let _ = write!(out, " since={}", ago(*since));
            print_identity(out, *system_id)
        }
        Local::Orphaned {
            was_primary,
            system_id,
        } => {
            let _ = write!(out, "local orphaned {}", role_of(*was_primary));
            print_identity(out, *system_id)
        }
        Local::Stopped(s) => {
            let role = role_of(s.was_primary);
            let clean = if s.is_clean { " clean" } else { "" };
            let _ = write!(
                out,
                "local stopped {role}{clean} system_id={} tl={} checkpoint={} redo={} position={}",
                s.system_id, s.timeline, s.checkpoint, s.redo, s.position
            );
            flag(out, s.is_half_rewound, "half_rewound");
            option(out, "crashed", s.crashed_at.map(ago));
            Ok(())
        }
        Local::Running(running) => {
            print_running(out, running);
            Ok(())
        }
    };
    out.push('\n');
}

fn role_of(is_primary: bool) -> &'static str {
    if is_primary { "primary" } else { "replica" }
}

fn print_identity(out: &mut String, system_id: Option<SystemId>) -> std::fmt::Result {
    match system_id {
        Some(system_id) => write!(out, " system_id={system_id}"),
        None => write!(out, " unreadable"),
    }
}

fn print_running(out: &mut String, running: &Running) {
    out.push_str("local running");
    match &running.role {
        RunningRole::Primary {
            position,
            is_checkpointed,
        } => {
            let _ = write!(out, " primary position={position}");
            flag(out, !is_checkpointed, "unchecked");
        }
        RunningRole::Replica {
            received,
            replayed,
            upstream,
            is_streaming,
        } => {
            let _ = write!(out, " replica received={received} replayed={replayed}");
            option(out, "upstream", upstream.as_deref().map(quoted));
            flag(out, *is_streaming, "streaming");
        }
    }
    let _ = write!(
        out,
        " system_id={} tl={}",
        running.system_id, running.timeline
    );
    for slot in running.slots.iter() {
        slots::print_view(out, slot);
    }
    option(
        out,
        "major",
        Some(running.major).filter(|major| *major != 15),
    );
    slots::print_synchronized(out, &running.synchronized);
    flag(out, running.has_pending_restart, "pending_restart");
    flag(out, running.is_wal_gone, "wal_gone");
    flag(out, running.has_read_all, "read_all");
    flag(out, running.is_promoting, "promoting");
    synchronous::print_commits(out, &running.commits);
}

fn print_peers(out: &mut String, peers: &Peers) {
    let Peers::Asked(answers) = peers else { return };
    out.push_str("peers asked");
    for (name, answer) in answers.iter() {
        let PeerAnswer::Answered(view) = answer else {
            let _ = write!(out, " {name}=unreachable");
            continue;
        };
        let what = match (view.is_running, view.is_primary) {
            (_, true) => "primary",
            (true, false) => "replica",
            (false, false) => "stopped",
        };
        let timeline = view.timeline.unwrap_or_default();
        let _ = write!(
            out,
            " {name}={what}@{timeline}@{}@replayed{}",
            view.position, view.replayed
        );
        if !view.may_lead {
            out.push_str("@nofailover");
        }
        let _ = write!(out, "@priority{}", view.priority);
        match view.is_streaming {
            Some(true) => {}
            Some(false) => out.push_str("@stalled"),
            None => out.push_str("@unknown"),
        }
        if !view.has_read_all {
            out.push_str("@reading");
        }
        if let Looked::InTurn(seen) = &view.looked {
            let _ = write!(
                out,
                "@sees-{}",
                seen.as_ref().map_or("", |name| name.as_str())
            );
        }
        if view.is_replay_paused {
            out.push_str("@paused");
        }
        if view.is_nearly_full {
            out.push_str("@nearly_full");
        }
        store::print_peer(out, view.store);
    }
    out.push('\n');
}

fn print_job(out: &mut String, job: &JobView, now: Moment) {
    if let Some(running) = &job.running {
        let ago = seconds(now.since(running.since));
        let _ = write!(out, "job running={} ago={ago}", running.kind.name());
        option(out, "source", running.source.as_ref());
        out.push('\n');
    } else if let Some(finished) = &job.finished {
        let ago = seconds(now.since(finished.at));
        let _ = write!(out, "job finished={} ago={ago}", finished.kind.name());
        option(out, "error", finished.error.as_deref().map(quoted));
        let trouble = finished.trouble.map(|trouble| match trouble {
            SourceTrouble::Silent => "silent",
            SourceTrouble::NotReady => "not_ready",
        });
        option(out, "trouble", trouble);
        option(out, "source", finished.source.as_ref());
        out.push('\n');
    }
}

fn print_standby(out: &mut String, memory: &Memory) {
    flag(out, memory.is_key_unchecked, "key_unchecked");
    flag(out, memory.is_standby_cluster, "standby_cluster");
    flag(out, memory.has_left_remote, "left_remote");
}

fn print_moments(out: &mut String, memory: &Memory, now: Moment) {
    let ago = |at: Moment| seconds(now.since(at));
    option(out, "crashed", memory.crashed_at.map(ago));
    if let Some(span) = memory.last_restart {
        option(out, "restart_began", Some(ago(span.began)));
        option(out, "restart_seen", Some(ago(span.seen)));
    }
    option(out, "copied", memory.slots_copied_at.map(ago));
    option(
        out,
        "not_copied",
        memory.slots_not_copied.as_deref().map(quoted),
    );
    option(out, "status", memory.status_at.map(ago));
    option(out, "alone", memory.alone_since.map(ago));
    option(out, "contradicted", memory.contradicted_since.map(ago));
    store::print_contradiction(out, memory);
    let foreign = memory.foreign_led.as_ref();
    option(
        out,
        "foreign_led",
        foreign.map(|(name, at)| format!("{name}@{}", ago(*at))),
    );
    instance::print_host(out, memory, ago);
    flag(out, memory.is_stopped_for_copy, "stopped_for_copy");
    option(out, "copy_ordered", memory.copy_ordered_at.map(ago));
    if let Some((at, from)) = memory.wal_gone_since {
        let _ = write!(out, " wal_gone={} wal_gone_from={from}", ago(at));
    }
    if let Some((at, replayed)) = memory.reads_since {
        let _ = write!(out, " reads={} reads_at={replayed}", ago(at));
    }
}

fn print_memory(out: &mut String, memory: &Memory, now: Moment) {
    let ago = |at: Moment| seconds(now.since(at));
    out.push_str("memory");
    print_moments(out, memory, now);
    print_standby(out, memory);
    for (name, at) in &memory.slot_needed {
        let _ = write!(out, " needed={name}@{}", ago(*at));
    }
    option(out, "not_streaming", memory.not_streaming_since.map(ago));
    let since = memory.not_primary_since;
    option(
        out,
        "not_primary",
        since.map(|(e, at)| format!("{}@{}@{}", e.generation, e.revision, ago(at))),
    );
    option(
        out,
        "kept",
        memory
            .kept_after_crash
            .map(|e| format!("{}@{}", e.generation, e.revision)),
    );
    option(
        out,
        "stands_back",
        memory
            .stands_back_until
            .map(|until| seconds(now.until(until))),
    );
    option(
        out,
        "bootstrap_failed",
        memory.bootstrap_failed.as_deref().map(quoted),
    );
    flag(out, memory.is_restarting, "restarting");
    let told = match memory.told {
        Told::Nothing => None,
        Told::Runs(role) => Some(("runs", role)),
        Told::Restarts(role) => Some(("restarts", role)),
        Told::Stopped {
            was,
            is_restart: false,
        } => Some(("stopped", was)),
        Told::Stopped {
            was,
            is_restart: true,
        } => Some(("stopped_to_restart", was)),
    };
    option(
        out,
        "told",
        told.map(|(word, role)| format!("{word}@{}", role.word())),
    );
    option(
        out,
        "pre_promoted",
        memory
            .pre_promoted
            .map(|e| format!("{}@{}", e.generation, e.revision)),
    );
    synchronous::print_memory(out, memory, now);
    out.push('\n');
    changes::print_memory(out, memory, now);
}
