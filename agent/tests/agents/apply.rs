//! `trunkline apply`, and what `trunkline explain` makes of the turns of it, on real servers.

use trunkline_agent::postgres::Postgres;

use super::agents::Agents;
use super::servers::{on_every_major, wait_for};
use super::{answer, leads};

/// The member that leads, by the operator's command.
fn leader(agents: &Agents<'_>) -> Option<String> {
    let list = agents.operate(1, &["list", "-f", "tsv"]).ok()?;
    let line = list.lines().find(|line| line.contains("\tLeader\t"))?;
    Some(line.split('\t').nth(1)?.to_owned())
}

/// Waits until both members wait for a restart, with the values of it.
async fn both_wait(agents: &Agents<'_>, change: &str) {
    wait_for(
        "two members that wait for a restart",
        || agents.told(),
        async || {
            let list = agents.operate(1, &["list", "-f", "tsv"]).ok()?;
            let streams = list.contains("streaming");
            (streams && list.matches(change).count() == 2).then_some(())
        },
    )
    .await;
}

#[test]
fn parameters_come_into_force_member_by_member_and_every_turn_of_it_can_be_decided_again() {
    on_every_major(
        "apply::parameters_come_into_force_member_by_member_and_every_turn_of_it_can_be_decided_again",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 5);
            let doors = [1, 2].map(|index| Postgres::new(agents.config(index)).unwrap());
            leads(&agents, &doors[0], 1).await;
            agents.start(2, 5);
            for (old, new, moves) in [("100", "110", true), ("110", "90", false)] {
                wait_for(
                    "a replica that streams",
                    || agents.told(),
                    async || {
                        agents
                            .operate(1, &["list"])
                            .ok()?
                            .contains("streaming")
                            .then_some(())
                    },
                )
                .await;
                let before = leader(&agents).unwrap();
                let set = format!("max_connections={new}");
                let edited = agents.operate(1, &["edit-config", "-q", "--force", "-p", &set]);
                edited.unwrap();
                both_wait(&agents, &format!("max_connections: {old}->{new}")).await;
                let said = agents.operate(1, &["apply", "--force"]).unwrap();
                assert!(said.contains("Success: no member"), "{said}");
                assert_eq!(leader(&agents).unwrap() != before, moves, "{said}");
                for door in &doors {
                    let status = answer(door).await.unwrap();
                    let found = status
                        .controlled
                        .iter()
                        .find(|(name, _)| name == "max_connections");
                    assert_eq!(found.unwrap().1, new, "{said}");
                }
            }
            for index in [1, 2] {
                let name = format!("member-{index}");
                let listed = agents.operate(1, &["explain", "test", &name, "--list", "-f", "tsv"]);
                let turns = listed.unwrap().lines().count() - 1;
                for turn in 1..=turns.min(20) {
                    let turn = turn.to_string();
                    let words = ["explain", "test", &name, "--turn", &turn];
                    let told = agents.operate(1, &words).unwrap();
                    assert!(told.ends_with("decide the same.\n"), "{told}");
                }
            }
        },
    );
}
