//! Why a turn decided as it did: every reason with its word and its sentence.

use std::fmt;

/// Declares the reasons with their words and sentences once.
macro_rules! reasons {
    ($($variant:ident $word:literal $sentence:literal)*) => {
        /// Why a turn decided as it did. Closed list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $sentence] $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The word of the log, the metric label, the API and the scripts.
            pub fn word(self) -> &'static str {
                match self { $(Reason::$variant => $word,)* }
            }

            /// The sentence for people: what is so and, where something is to be done, what.
            pub fn sentence(self) -> &'static str {
                match self { $(Reason::$variant => $sentence,)* }
            }

            /// The reason of that word.
            pub fn from_word(word: &str) -> Option<Reason> {
                match word { $($word => Some(Reason::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    Leading "leading" "This member leads."
    LeaseAboutToExpire "lease_about_to_expire" "The lease could not be renewed and ends now: PostgreSQL is stopped before the deadline."
    LeaseExpired "lease_expired" "The lease's deadline has passed; this member does not act as leader until it is renewed."
    LeaderKeyMissing "leader_key_missing" "The leader key vanished while the lease still holds; it is created again."
    FenceNotLive "fence_not_live" "The fence process does not answer: it is replaced before anything that needs it, or the lease is let lapse."
    ArmingFence "arming_fence" "PostgreSQL accepts writes under a held lease; the fence is armed."
    Promoting "promoting" "This member holds the lease and its PostgreSQL leaves recovery."
    PromotionFailed "promotion_failed" "Promotion did not succeed in time; the lease is given up so that another member can run."
    KillingOrphans "killing_orphans" "The postmaster is dead and some of its processes live on: they are killed."
    WaitingToPromote "waiting_to_promote" "This member holds the lease and waits for its PostgreSQL to be ready for promotion."
    CheckpointAfterPromote "checkpoint_after_promote" "A checkpoint on the new timeline lets the others rewind from here."
    RecordingHistory "recording_history" "The new timeline is written into the history."
    MaintainingSlots "maintaining_slots" "Replication slots are brought in line with the members."
    StartingPrimary "starting_primary" "This member leads and its PostgreSQL starts as primary."
    WaitingForPrimaryStart "waiting_for_primary_start" "PostgreSQL starts as primary; primary_start_timeout limits the wait."
    RestartingAfterCrash "restarting_after_crash" "PostgreSQL crashed and little is to be replayed: it starts again in place."
    FailingOverAfterCrash "failing_over_after_crash" "PostgreSQL crashed and another member can take over: the lease is released."
    NobodyCanTakeOver "nobody_can_take_over" "PostgreSQL crashed and no other member can take over: it starts again in place."
    AskingPeers "asking_peers" "The other members' agents are asked before a leader is chosen."
    PostgresUnresponsive "postgres_unresponsive" "PostgreSQL does not answer; if it stays so for a ttl it is stopped by force."
    StoppingHungPostgres "stopping_hung_postgres" "PostgreSQL has not answered for a ttl: it is stopped by force."
    DataUnreadable "data_unreadable" "The data directory cannot be read. Check that its volume is mounted and belongs to this user."
    LeaderWithoutData "leader_without_data" "This member holds the lease without data; it gives the lease up."
    SwitchoverRefused "switchover_refused" "No member fits the request for a change of leader; it is dropped."
    SwitchoverCheckpoint "switchover_checkpoint" "A checkpoint ahead of the change of leader, so that the stop is short; nobody is touched yet."
    SwitchoverDraining "switchover_draining" "Routers hold new transactions until those that run have ended; then the leader changes."
    SwitchoverHolding "switchover_holding" "Routers hold everything new until the last statements have ended; then PostgreSQL stops for the change of leader."
    SwitchoverGivenUp "switchover_given_up" "The change of leader was called off before PostgreSQL stopped: clients go on. Ask for it with a longer drain_timeout, or with on_timeout terminate to end the sessions in its way."
    SwitchoverAnnounced "switchover_announced" "A change of leader is announced; nobody is touched yet."
    SwitchoverStopping "switchover_stopping" "PostgreSQL stops for the change of leader."
    SwitchoverStopped "switchover_stopped" "PostgreSQL has stopped; its last position is announced to the candidate."
    SwitchoverWaitingForCandidate "switchover_waiting_for_candidate" "The candidate has not confirmed the last position yet."
    HandingOver "handing_over" "The candidate has everything; the leader key moves to it."
    SwitchoverRolledBack "switchover_rolled_back" "The candidate did not confirm in time; this member goes on as leader."
    HandOverUnresolved "hand_over_unresolved" "Whether the leader key was given away is unknown; it is written again before PostgreSQL may start."
    Following "following" "This member follows the leader."
    WaitingForLeader "waiting_for_leader" "The leader is not a running primary yet."
    ChangingUpstream "changing_upstream" "PostgreSQL is pointed at the leader."
    NotStreaming "not_streaming" "PostgreSQL has the right upstream and does not stream from it."
    RepairingReplication "repairing_replication" "PostgreSQL has not streamed for a ttl: its WAL receiver is made to connect anew."
    AnotherLeads "another_leads" "PostgreSQL runs as primary while another member leads: it is stopped at once."
    Diverged "diverged" "The WAL here goes on beyond the point where the leader's history forked: PostgreSQL stops to be mended, after 2 s where it may only be reading."
    WaitingForLeaderCheckpoint "waiting_for_leader_checkpoint" "A rewind waits for the leader's first checkpoint on its timeline."
    WaitingForHistory "waiting_for_history" "The leader's timeline is not in the history yet."
    Rewinding "rewinding" "The WAL here is taken back to where it left the leader's history."
    Recloning "recloning" "The data cannot be rewound: it is copied anew beside the old directory."
    ReplaceForbidden "replace_forbidden" "The data has diverged, or the WAL that it needs next is gone, and remove_data_directory_on_diverged_timelines or _on_rewind_failure forbids to replace it. Rewind or re-clone this member by hand, or run trunkline reinit."
    StartingReplica "starting_replica" "PostgreSQL starts as replica."
    WaitingForStart "waiting_for_start" "PostgreSQL starts and does not accept connections yet."
    WaitingAfterFailure "waiting_after_failure" "The last attempt failed; the next follows after loop_wait."
    NotEligible "not_eligible" "This member's tags forbid it to lead."
    TooFarBehind "too_far_behind" "This member would lose more than maximum_lag_on_failover. trunkline failover overrides this limit."
    BehindNewestTimeline "behind_newest_timeline" "check_timeline is on and this member has not reached the newest timeline of the cluster: it does not run. trunkline failover overrides this."
    WalGone "wal_gone" "The upstream has removed the WAL that this replica needs next; restore_command may still have it. After three ttl the data is copied anew."
    WalGoneCopying "wal_gone_copying" "The WAL that this replica needs is gone from its upstream and from the archive: PostgreSQL stops to be copied anew."
    WriteHangs "write_hangs" "A write to the disk of PostgreSQL has not come back: after a ttl another member takes over, if one can. Look at the host's storage."
    HandingOverForHang "handing_over_for_hang" "A write to the disk has not come back for a ttl and another member can take over: PostgreSQL is stopped by force."
    KillHangs "kill_hangs" "PostgreSQL was killed and its processes do not end: the lease is renewed no more, so that another member takes over. Look at the host's storage."
    DiskNearlyFull "disk_nearly_full" "A volume of PostgreSQL is nearly full and no member with room can take over: PostgreSQL will stop when it is full. Make room now."
    HandingOverForRoom "handing_over_for_room" "A volume of PostgreSQL is nearly full: a switchover to a member with room is asked for."
    WatchdogNotReady "watchdog_not_ready" "watchdog.mode is required and the device cannot be used: this member does not lead. The agent's log says why; mend that, or set the mode to automatic."
    PeerIsPrimary "peer_is_primary" "A reachable member's PostgreSQL still runs as primary: nobody is promoted."
    BetterCandidate "better_candidate" "Another reachable member is further ahead or preferred."
    CandidateNamed "candidate_named" "The operator named another member to lead."
    Racing "racing" "This member is the best candidate and takes the lease."
    RetakingLease "retaking_lease" "PostgreSQL runs as primary and nobody leads: this member takes the lease."
    StalePrimary "stale_primary" "PostgreSQL runs as primary on a timeline that the cluster has left: it is stopped at once."
    StandingBack "standing_back" "This member just gave the lease up and lets others run first."
    AnotherIsDisarmed "another_is_disarmed" "A member paused with its fence disarmed and may still be primary: nobody runs. trunkline resume --without MEMBER if it is dead."
    StartingToRace "starting_to_race" "Nobody leads; PostgreSQL starts in recovery so that this member can run."
    ConfirmingLease "confirming_lease" "The leader key names this member; the lease is renewed to prove it."
    Bootstrapping "bootstrapping" "A new cluster is made."
    ClaimingBootstrap "claiming_bootstrap" "No cluster exists under this scope; this member offers to make it."
    FinishingBootstrap "finishing_bootstrap" "The new cluster's roles and settings are made."
    RecordingIdentity "recording_identity" "The system identifier is written to the DCS."
    BootstrapFailed "bootstrap_failed" "Making the cluster failed; the claim is given up."
    WaitingForBootstrap "waiting_for_bootstrap" "Another member makes the cluster."
    WaitingForPrimaryToClone "waiting_for_primary_to_clone" "There is no data here and no running leader to copy it from."
    Cloning "cloning" "The data is copied from another member."
    ReplicaWithoutCluster "replica_without_cluster" "The data here is a replica's and the DCS knows no cluster of this scope. Start the agent on the primary first."
    AdoptingPrimary "adopting_primary" "The data here is a primary's and the DCS knows no cluster of this scope: it becomes the cluster."
    ForeignSystemId "foreign_system_id" "The data here belongs to another cluster (its system identifier is not the one in the DCS). Check scope and data_dir, or remove the data."
    DcsUnknown "dcs_unknown" "The DCS has not been read since the agent started; PostgreSQL is left as it is."
    KeepingLeaseWithoutDcs "keeping_lease_without_dcs" "The DCS does not answer; the lease still holds."
    FollowingWithoutDcs "following_without_dcs" "The DCS does not answer; the replica goes on with the upstream it has."
    PrimaryWithoutLease "primary_without_lease" "PostgreSQL runs as primary without a lease and the DCS does not answer: it is stopped at once."
    StartingInRecovery "starting_in_recovery" "The DCS does not answer; PostgreSQL starts in recovery and serves reads."
    JobInProgress "job_in_progress" "A long job is in progress."
    JobCancelled "job_cancelled" "What the job in progress was for has changed: it is ended."
    ConfigUnreadable "config_unreadable" "The dynamic configuration in the DCS cannot be read, and what it said before is not known here: nobody is promoted, demoted or copied. Write it anew with PUT /config."
    Paused "paused" "Maintenance: automation is off."
    DisarmingForPause "disarming_for_pause" "Maintenance: the disarmed fence is announced, then the fence sleeps."
    RestartRequested "restart_requested" "The operator asked for a restart of PostgreSQL."
    RestartCheckpoint "restart_checkpoint" "A checkpoint ahead of the restart of this leader's PostgreSQL, so that the stop is short; nobody is touched yet."
    RestartDraining "restart_draining" "Routers hold new transactions until those that run have ended; then PostgreSQL restarts."
    RestartHolding "restart_holding" "Routers hold everything new until the last statements have ended; then PostgreSQL restarts."
    RestartGivenUp "restart_given_up" "The restart was called off before PostgreSQL stopped: clients go on. Ask for it with a longer drain_timeout, or with on_timeout terminate to end the sessions in its way."
    ReinitializeRequested "reinitialize_requested" "The operator asked for a new copy of the data."
    RequestRefused "request_refused" "The request does not fit this member's situation now."
    StoppingForShutdown "stopping_for_shutdown" "The agent ends and stops PostgreSQL."
    ReleasingForShutdown "releasing_for_shutdown" "The agent ends; PostgreSQL has stopped and the lease is released."
    NotSynchronous "not_synchronous" "Synchronous replication is on and commits did not wait for this member: it could lose acknowledged ones. trunkline failover overrides this."
    NotEnoughVotes "not_enough_votes" "Synchronous replication is on and too few voters answer that are not ahead of this member: it could lose acknowledged commits. trunkline failover overrides this."
    DiscardingBootstrap "discarding_bootstrap" "The data here is of a bootstrap that was never finished: it is set aside as <data_dir>.failed."
    CloningWithoutLeader "cloning_without_leader" "Nobody leads; the data is made by a method that needs no leader."
    RecoveringToTarget "recovering_to_target" "The new cluster's data is recovered; when that ends PostgreSQL accepts writes by itself."
    RunningPrePromote "running_pre_promote" "The operator's pre_promote runs; its success allows the promotion."
    PrePromoteFailed "pre_promote_failed" "The operator's pre_promote forbade the promotion: the lease is given up and others run first."
    PausedGivingUp "paused_giving_up" "Maintenance: PostgreSQL here is stopped or in recovery; the lease is given up."
    DataElsewhere "data_elsewhere" "The DCS knows no cluster and a registered member has data: no other cluster is made. Start the agent of its primary; if the data is of no use, end that member's agent."
    ClaimingSync "claiming_sync" "Synchronous replication is on: the sync record names this leader before commits depend on it."
    PreparingCommits "preparing_commits" "Elected by votes; before the promotion commits are made to wait for so many standbys that the next election finds them."
    AddingSyncStandby "adding_sync_standby" "Commits wait for another standby; it enters the sync record once it has everything from before."
    RemovingSyncStandby "removing_sync_standby" "A standby leaves the sync record before commits wait for it no more."
    NoSyncStandby "no_sync_standby" "No standby is left that commits could wait for: they wait. In non-strict mode they go on after loop_wait."
    DegradedToAsynchronous "degraded_to_asynchronous" "Synchronous replication is on and no standby can be waited for: commits go on without one, and only this member may lead."
    BlockingCommits "blocking_commits" "synchronous_mode_strict is on and no standby can be waited for: commits wait until one streams."
    AccessClosedUntilSynchronous "access_closed_until_synchronous" "Restarted while commits wait for standbys: clients get in once a synchronous standby has everything that the restart made visible."
    LeavingSync "leaving_sync" "This synchronous standby ends, or its data is to be replaced; it waits until the leader counts on it no more."
    StandbyCluster "standby_cluster" "The configuration has standby_cluster and the data here is a primary's: it is not taken for this cluster's. Remove the data, or the section."
    LeadingStandby "leading_standby" "This member leads a standby cluster: it replicates from another cluster, and the others from it."
    RemoteUnusable "remote_unusable" "The data here could not be brought in line with the cluster that this one replicates from: the lease is given up so that another member can follow it."
    RemoteSilent "remote_silent" "The cluster that this one replicates from could not be asked where its history left the one here: PostgreSQL stays stopped, nothing is replaced, and it is asked again. Let it be reached and admit the rewind user, or run trunkline reinit to copy it whole."
    RemoteNotReady "remote_not_ready" "A rewind waits for the cluster that this one replicates from: for its first checkpoint since its promotion, or for WAL that it lacks."
    StandbyWithoutIdentity "standby_without_identity" "The DCS has lost the key initialize of this standby cluster. A member writes it again once every registered one answers in recovery with the same data. End the agents of members that never will, or write the key by hand."
    AdoptingStandby "adopting_standby" "The DCS has lost the key initialize of this standby cluster, and every registered member answers in recovery with the same data: this one takes the lease and writes it again."
    DemotingCluster "demoting_cluster" "standby_cluster was added to the configuration: the primary stops to become the leader of a standby cluster."
    CopyingLogicalSlots "copying_logical_slots" "The leader's permanent logical slots are copied; PostgreSQL here restarts for it."
    LogicalSlotNotReady "logical_slot_not_ready" "Copies of the leader's logical slots are missing, or not known to be usable yet: a consumer could lack changes after a failover to this member. hot_standby_feedback must reach the leader."
    StandbyConfigGone "standby_config_gone" "This was a standby cluster and the DCS has lost its configuration: nobody is promoted. Write it again: trunkline edit-config, with standby_cluster or, to make this an independent cluster, without."
    HoldingByFailsafe "holding_by_failsafe" "The DCS does not answer; every member of the failsafe list consents to this leader going on."
    NoRaceUntil "no_race_until" "This member promised a leader that goes on without the DCS not to run for a ttl."
    NotInFailsafe "not_in_failsafe" "This member is not in the failsafe list, so a leader may go on without the DCS that it knows nothing of. A leader lists it; if there is none, choose another member, or delete the failsafe key if you know that nobody leads."
    WaitingAfterBoot "waiting_after_boot" "What was promised before this boot is not known: this member does not run for a ttl."
    StoreWentBack "store_went_back" "The DCS lost its memory, was restored from an old copy or is another one: nothing of it is believed and nobody is promoted before its keys were made anew. trunkline accept-dcs does that by hand."
    RecreatingKeys "recreating_keys" "The DCS is not the one that was known and every member consents: the cluster's keys are made anew in it, with a higher generation."
    RecreationLacksConsent "recreation_lacks_consent" "The DCS is not the one that was known, and its keys are not made anew without this member's consent. trunkline accept-dcs makes them anew if it is dead."
    StoreOfAnother "store_of_another" "The DCS is not the one that was known, and what stands in it is another cluster's or another leader's: it is not overwritten. trunkline accept-dcs does that by hand."
    PeerKnowsMore "peer_knows_more" "This member's agent knows another DCS than the one that answers here, or more than it shows: nothing is done by it. If that stays so, see trunkline accept-dcs."
    KeptDataWithoutCluster "kept_data_without_cluster" "The DCS knows no cluster of this scope, and an agent kept the data here before: the DCS lost its memory or is another one. trunkline accept-dcs takes it for the true one."
    DataIsNewer "data_is_newer" "The data here is of a later timeline than any that the DCS knows of, and no primary answers: the DCS is an old copy. trunkline accept-dcs takes it for the true one, and the most advanced data for the cluster's."
    TrustingStore "trusting_store" "Nobody who could be reached speaks against the DCS that answers."
    RulesFail "rules_fail" "A defect in the rules: three turns in a row failed. Leadership goes to another member that answers; please report it."
    WalStillArrives "wal_still_arrives" "The last leader was not one of Trunkline and WAL still arrives from it: this member waits one ttl more."
    ShutDown "shut_down" "The agent may end: PostgreSQL has stopped and nothing is held, or the cluster is paused and PostgreSQL goes on without it."
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_word_and_parses_back() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(Reason::from_word(reason.word()), Some(*reason));
            assert!(reason.sentence().ends_with('.'), "{reason}");
        }
    }
}
