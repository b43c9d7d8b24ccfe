//! `accept-dcs`: the DCS that answers is taken for the true one, although it lost its memory, was restored from an
//! old copy or is another one (`ha.md` 8). The cluster's keys are written into it as the agents knew them, with a
//! higher generation and without a leader: who leads is then found by the rules of any other day.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use trunkline_shared::cluster::store::Authority;
use trunkline_shared::cluster::topology::{ClaimedTimeline, Fact, FactKey, Initialize};
use trunkline_shared::cluster::{MemberName, Timeline, Topology};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::records::{self, claimed_to_json, read_settings};
use trunkline_shared::dcs::watch::Doubted;
use trunkline_shared::dcs::{DcsError, Entry, Operation, Txn};
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;

use super::arguments::AcceptDcs;
use super::table::{Column, Table};
use super::{CtlError, Session, rest};
use crate::api::dcs::Known;
use crate::recreation::{self, Recreation, Succession};

/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// How long the agents may take to believe it, and a leader to be found.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How often they are asked meanwhile.
const LOOK: Duration = Duration::from_millis(250);

/// How many rounds of asking find members that only others name.
const ROUNDS: usize = 3;

/// Every member that was heard of: what its agent knows, or why it does not say.
type Answers = BTreeMap<String, Result<Known, String>>;

/// The DCS and the agents, asked at about one moment.
struct Seen {
    doubted: Doubted,
    answers: Answers,
}

/// What is to be written.
#[derive(Debug)]
struct Order {
    /// Who leads by this DCS and believes it: its keys are left as they are.
    led_by: Option<MemberName>,
    recreation: Recreation,
}

/// `trunkline accept-dcs`
pub(super) async fn accept(session: &Session, asked: &AcceptDcs) -> Result<(), CtlError> {
    let client = session.client()?;
    let before = look(session, &client).await?;
    session.terminal.print(&shown(&before.doubted))?;
    session
        .terminal
        .print(&table(session, &before.answers, &before.doubted).render(asked.format))?;
    let best = wisest(&before.answers, &before.doubted)?;
    let agreed = order(&session.keys, &before)?;
    say_what_is_missing(session, &before.answers, best, &agreed)?;
    if !asked.force {
        let what = match &agreed.led_by {
            Some(leader) => format!(
                "{leader} leads by it: its keys are left as they are, and who does not believe it is told to"
            ),
            None => format!("Its keys are written as {} knew them", best.name),
        };
        let cluster = &session.cluster;
        let question = format!("Is this the DCS of cluster {cluster} from now on? {what}");
        let refused = "Aborted: the DCS was not accepted";
        session.terminal.confirm(&question, refused).await?;
    }
    wait_for_leases(session, best).await?;
    // Whoever has renewed its lease meanwhile leads by this DCS, whether it answers or not.
    let now = look(session, &client).await?;
    let order = order(&session.keys, &now)?;
    refuse_a_live_lease(&session.keys, &now, &order)?;
    if !asked.force && decides(&session.keys, &agreed) != decides(&session.keys, &order) {
        return Err(CtlError::Failed(
            "what the DCS and the agents know has changed since it was shown: nothing was written; look again"
                .to_owned(),
        ));
    }
    let generation = order.recreation.generation;
    write(session, order.recreation).await?;
    session.terminal.success(&match &order.led_by {
        Some(leader) => format!(
            "The DCS of cluster {}, which {leader} leads, has generation {generation}",
            session.cluster
        ),
        None => format!(
            "The keys of cluster {} are written with generation {generation}",
            session.cluster
        ),
    })?;
    wait(session, &now.answers, generation).await
}

async fn look(session: &Session, client: &HttpClient) -> Result<Seen, CtlError> {
    let listing = session.dcs.read(session.keys.prefix()).await?;
    let doubted = recreation::shown(&session.keys, listing);
    let answers = ask_all(session, client, &doubted.topology).await;
    Ok(Seen { doubted, answers })
}

/// Who does not answer, and what nobody knows any more.
fn say_what_is_missing(
    session: &Session,
    answers: &Answers,
    best: &Known,
    agreed: &Order,
) -> Result<(), CtlError> {
    let missing = silent(answers);
    if !missing.is_empty() {
        session.terminal.line(&format!(
            "No answer: {}. What they alone knew or committed since is lost if they come back later",
            missing.join(", ")
        ))?;
    }
    if best.keys.is_empty() && agreed.led_by.is_none() {
        session.terminal.line(&match system(best, answers) {
            Some(system) => format!(
                "No member that answers knows the cluster's keys, for all have started since: only its system {system} is written, and whoever leads adds the configuration that it kept"
            ),
            None => "No member that answers knows the cluster's keys or has data: only the DCS itself is accepted".to_owned(),
        })?;
    }
    Ok(())
}

/// Nobody may be elected while a lease of the store before may live: who holds one may not answer.
async fn wait_for_leases(session: &Session, best: &Known) -> Result<(), CtlError> {
    let config = best.keys.iter().find(|(key, _)| key.ends_with("/config"));
    let settings = config.and_then(|(_, text)| read_settings(text).ok());
    let ttl = settings.map(|read| read.settings).unwrap_or_default().ttl;
    session.terminal.line(&format!(
        "Waiting {} s: a lease of the DCS before may live so long",
        ttl.as_secs()
    ))?;
    tokio::time::sleep(ttl).await;
    Ok(())
}

/// A key that nobody renews ends by itself. One that still stands after the wait may be a primary's: it would be
/// rid of it while it goes on, for a renewal never writes the key.
fn refuse_a_live_lease(keys: &Keys, now: &Seen, order: &Order) -> Result<(), CtlError> {
    let Some(leader) = &now.doubted.topology.leader else {
        return Ok(());
    };
    let lease = recreation::leader_lease(keys, &now.doubted).unwrap_or(0);
    if lease == 0 || order.led_by.is_some() {
        return Ok(());
    }
    let name = &leader.member;
    let why = match now.answers.get(name.as_str()) {
        Some(Ok(_)) => "its agent does not believe this DCS".to_owned(),
        Some(Err(why)) => format!("its agent does not answer: {why}"),
        None => "no agent of that name is known".to_owned(),
    };
    Err(CtlError::Failed(format!(
        "{name} holds the leader key of this DCS on a live lease, and {why}: nothing was written. See that its agent answers, or stop it, or wait until the lease has run out, and look again"
    )))
}

/// Asks the agent of the file, those that the DCS names, and those whom these name.
async fn ask_all(session: &Session, client: &HttpClient, topology: &Topology) -> Answers {
    let mut urls: BTreeMap<String, String> = BTreeMap::new();
    for (name, url) in topology.failsafe.iter() {
        urls.insert(name.to_string(), url.to_string());
    }
    for member in topology.members.values() {
        urls.insert(member.name.to_string(), member.api_url.to_string());
    }
    let mut answers = Answers::new();
    if let Some(url) = &session.config.agent
        && let Ok(known) = ask(client, session.keys.prefix(), url).await
    {
        urls.extend(known.members.clone());
        answers.insert(known.name.clone(), Ok(known));
    }
    for _ in 0..ROUNDS {
        let open: Vec<(String, String)> = urls
            .iter()
            .filter(|(name, _)| !answers.contains_key(*name))
            .map(|(name, url)| (name.clone(), url.clone()))
            .collect();
        if open.is_empty() {
            break;
        }
        let mut asking = JoinSet::new();
        for (name, url) in open {
            let prefix = session.keys.prefix().to_owned();
            let client = client.clone();
            asking.spawn(async move { (name, ask(&client, &prefix, &url).await) });
        }
        while let Some(Ok((name, answer))) = asking.join_next().await {
            if let Ok(known) = &answer {
                for (other, url) in &known.members {
                    urls.entry(other.clone()).or_insert_with(|| url.clone());
                }
            }
            answers.insert(name, answer);
        }
    }
    answers
}

async fn ask(client: &HttpClient, prefix: &str, url: &str) -> Result<Known, String> {
    let path = "/trunkline/dcs";
    let answer = rest::request(client, url, Method::GET, path, String::new(), ANSWER).await;
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(format!(
            "it answers {} and is none of Trunkline",
            answer.status
        ));
    }
    let known: Known = serde_json::from_str(&answer.text).map_err(|error| error.to_string())?;
    match known.keys.keys().all(|key| key.starts_with(prefix)) {
        true => Ok(known),
        false => Err("its agent is of another cluster".to_owned()),
    }
}

/// Why the agent of the file does not believe the DCS, and what to do then; `None` if it does, or does not say.
pub(super) async fn disbelief(session: &Session) -> Option<String> {
    let url = session.config.agent.as_ref()?;
    let client = session.client().ok()?;
    let known = ask(&client, session.keys.prefix(), url).await.ok()?;
    let why = known.went_back?;
    Some(format!(
        "the agent of {} does not believe this DCS: {why}; see \"trunkline accept-dcs\"",
        known.name
    ))
}

/// What the DCS says of itself.
fn shown(doubted: &Doubted) -> String {
    let (header, topology) = (doubted.listing.header, &doubted.topology);
    let initialize = match topology.initialize {
        Initialize::Done(id) => format!("system {id}"),
        Initialize::Running => "a cluster that is being made".to_owned(),
        Initialize::Absent => "no cluster".to_owned(),
    };
    let leader = topology.leader.as_ref();
    let leader = leader.map_or("nobody".to_owned(), |leader| leader.member.to_string());
    format!(
        "The DCS is cluster {:x} at revision {}, generation {}; it shows {initialize}, led by {leader}\n",
        header.cluster_id, header.revision, topology.generation
    )
}

fn table(session: &Session, answers: &Answers, doubted: &Doubted) -> Table {
    let column = |name: &str, head: &str, is_number| Column {
        head: head.to_owned(),
        ..Column::new(name, is_number)
    };
    let rows = answers.iter().map(|(name, answer)| match answer {
        Ok(known) => vec![
            name.clone().into(),
            match known.is_primary {
                true => "primary".into(),
                false => "replica".into(),
            },
            known.leader.clone().map_or(Value::Null, Value::from),
            known.cluster_id.clone().into(),
            known.revision.into(),
            known.generation.into(),
            match &known.went_back {
                Some(why) => format!("does not believe the DCS: {why}").into(),
                None if speaks_against(known, doubted) => "knows later writes than it shows".into(),
                None => "believes the DCS".into(),
            },
        ],
        Err(why) => vec![
            name.clone().into(),
            "unknown".into(),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
            why.clone().into(),
        ],
    });
    Table {
        title: format!(" Cluster: {} ", session.cluster),
        columns: vec![
            column("Member", "Member", false),
            column("Role", "Role", false),
            column("Leader", "Knew as leader", false),
            column("Cluster id", "Knew cluster", false),
            column("Revision", "Revision", true),
            column("Generation", "Generation", true),
            column("Says", "Says", false),
        ],
        rows: rows.collect(),
        leaves_out_empty: false,
        delimiter: "\t".to_owned(),
    }
}

fn known(answers: &Answers) -> impl Iterator<Item = &Known> {
    answers.values().filter_map(|answer| answer.as_ref().ok())
}

fn silent(answers: &Answers) -> Vec<&str> {
    let silent = answers.iter().filter(|(_, answer)| answer.is_err());
    silent.map(|(name, _)| name.as_str()).collect()
}

/// Whether it does not believe this DCS, or knows of later writes in it, though it has not met it yet or is cut off from it:
/// an old copy.
fn speaks_against(known: &Known, doubted: &Doubted) -> bool {
    let (header, shown) = (doubted.listing.header, &doubted.topology);
    let is_same = u64::from_str_radix(&known.cluster_id, 16) == Ok(header.cluster_id)
        && known.generation == shown.generation;
    let later = Authority::of(shown).older_than(&known.written);
    known.went_back.is_some() || is_same && later.is_some()
}

/// Whose knowledge is written: the newest.
fn wisest<'a>(answers: &'a Answers, doubted: &Doubted) -> Result<&'a Known, CtlError> {
    let fail = |why: &str| Err(CtlError::Failed(why.to_owned()));
    if known(answers).next().is_none() {
        return fail(
            "no agent answers, so nothing is known of the cluster: give the file of an agent that runs (-c FILE)",
        );
    }
    if !known(answers).any(|known| speaks_against(known, doubted)) {
        return fail("every agent that answers believes the DCS: there is nothing to accept");
    }
    let both = known(answers).flat_map(|known| [initialized(known), known.system.clone()]);
    let mut systems: Vec<String> = both.flatten().collect();
    systems.sort_unstable();
    systems.dedup();
    if systems.len() > 1 {
        return Err(CtlError::Failed(format!(
            "the agents are of different clusters ({}): end those that do not belong here",
            systems.join(", ")
        )));
    }
    // Revisions of two stores tell nothing of each other: who doubts by what it has seen itself goes before who was
    // told, and before who believes what the others doubt.
    let newest = known(answers).max_by_key(|known| {
        let doubts = speaks_against(known, doubted);
        let knows_keys = initialized(known).is_some();
        (
            knows_keys,
            known.generation,
            doubts && !known.is_told,
            !known.is_told,
            known.revision,
        )
    });
    newest.map_or_else(|| fail("no agent answers"), Ok)
}

/// What `initialize` was to it.
fn initialized(known: &Known) -> Option<String> {
    let mut keys = known.keys.iter();
    let found = keys.find(|(key, _)| key.ends_with("/initialize"));
    found.map(|(_, id)| id.clone())
}

/// The cluster's system: by its keys, else by the data, which is of one system everywhere.
fn system(best: &Known, answers: &Answers) -> Option<String> {
    let of_data = || known(answers).find_map(|known| known.system.clone());
    initialized(best).or_else(of_data)
}

/// A claim for the timelines of the data, where the best of those who answer knew less: the number of a promotion
/// that only others saw is not to be used for a second one.
fn newer_claim(known: Option<&str>, answers: &Answers) -> Option<ClaimedTimeline> {
    let known = known.map(|text| records::parse(&FactKey::Timeline, text.as_bytes()));
    let known = match known {
        Some(Fact::Timeline(claimed)) => claimed.timeline,
        _ => Timeline(0),
    };
    let of_data = answers.values().flatten().map(|known| known.timeline).max();
    let newest = Timeline(of_data.unwrap_or(0));
    (newest > known && newest > Timeline(1)).then(|| ClaimedTimeline {
        timeline: newest,
        parent: Timeline(newest.0 - 1),
    })
}

/// The keys to be written. Where nobody knows them, their data is still the cluster: its most advanced member is to
/// be elected, and not the first to come adopted.
fn wanted(keys: &Keys, answers: &Answers, best: &Known) -> Vec<Entry> {
    let mut wanted = best.entries();
    let claim = keys.path(&FactKey::Timeline);
    let known = best.keys.get(&claim);
    if let Some(newer) = newer_claim(known.map(String::as_str), answers) {
        wanted.retain(|entry| entry.key != claim);
        wanted.push(Entry {
            key: claim,
            value: claimed_to_json(newer).into_bytes(),
            mod_revision: 0,
            lease: 0,
        });
    }
    if initialized(best).is_none() {
        wanted.extend(system(best, answers).map(|system| Entry {
            key: keys.path(&FactKey::Initialize),
            value: system.into_bytes(),
            mod_revision: 0,
            lease: 0,
        }));
    }
    wanted
}

/// Above all that anybody knows.
fn next_generation(answers: &Answers, shown: &Topology) -> u64 {
    let known = known(answers).map(|known| known.generation);
    known.fold(shown.generation, u64::max) + 1
}

/// The number, and all stores that anybody who answers has known.
fn succession(keys: &Keys, seen: &Seen) -> Succession {
    let shown = &seen.doubted.topology;
    let generation = next_generation(&seen.answers, shown);
    let path = keys.path(&FactKey::Succeeds);
    let mut all: Vec<&Known> = known(&seen.answers).collect();
    all.sort_by_key(|known| known.generation);
    let of_agents = all.into_iter().flat_map(|known| {
        let listed = known.keys.get(&path);
        let listed = listed.map(|text| records::parse(&FactKey::Succeeds, text.as_bytes()));
        let mut stores = match listed {
            Some(Fact::Succeeds(stores)) => stores.to_vec(),
            Some(_) | None => Vec::new(),
        };
        stores.extend(u64::from_str_radix(&known.cluster_id, 16));
        stores
    });
    Succession::new(generation, shown.succeeds.iter().copied().chain(of_agents))
}

/// Who is named leader, answers and believes the DCS. The key alone says nothing: it may be of an old copy.
fn leads_by_it(seen: &Seen) -> Option<&MemberName> {
    let leader = &seen.doubted.topology.leader.as_ref()?.member;
    let answer = seen.answers.get(leader.as_str())?.as_ref().ok()?;
    (!speaks_against(answer, &seen.doubted)).then_some(leader)
}

fn order(keys: &Keys, seen: &Seen) -> Result<Order, CtlError> {
    let (doubted, answers) = (&seen.doubted, &seen.answers);
    let best = wisest(answers, doubted)?;
    let succession = succession(keys, seen);
    if let Some(leader) = leads_by_it(seen) {
        return Ok(Order {
            led_by: Some(leader.clone()),
            recreation: recreation::vouched(keys, doubted, &succession),
        });
    }
    let believes = |name: &MemberName| {
        let answer = answers.get(name.as_str());
        answer.is_some_and(|answer| answer.as_ref().is_ok_and(|a| !speaks_against(a, doubted)))
    };
    let wanted = wanted(keys, answers, best);
    let mut recreation = recreation::transaction(keys, doubted, wanted, &succession, believes);
    // A key without a lease is of a copy that was written by hand, and would never end.
    if recreation::leader_lease(keys, doubted) == Some(0) {
        let leader = keys.path(&FactKey::Leader);
        recreation.then.push(Operation::Delete(leader));
    }
    Ok(Order {
        led_by: None,
        recreation,
    })
}

/// What of an order whoever agreed to it has agreed to.
fn decides<'a>(keys: &Keys, order: &'a Order) -> (Option<&'a MemberName>, Vec<&'a Operation>) {
    let decisive = recreation::DECISIVE.map(|key| keys.path(&key));
    let written = order.recreation.then.iter();
    let decisive = written.filter(|operation| match operation {
        Operation::Put { key, .. } | Operation::Delete(key) | Operation::Get(key) => {
            decisive.contains(key)
        }
    });
    (order.led_by.as_ref(), decisive.collect())
}

async fn write(session: &Session, order: Recreation) -> Result<(), CtlError> {
    let generation = order.generation;
    let txn = Txn {
        when: order.when,
        then: order.then,
        otherwise: Vec::new(),
    };
    match session.dcs.commit(&txn).await {
        Ok(committed) if committed.succeeded => Ok(()),
        Ok(_) => Err(CtlError::Failed(
            "the DCS has changed meanwhile: nothing was written; look again".to_owned(),
        )),
        Err(error @ DcsError::UnknownOutcome { .. }) => {
            let now = session.look().await?.generation;
            match now == generation {
                true => Ok(()),
                false => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Until every agent that answered believes it, and somebody leads.
async fn wait(session: &Session, before: &Answers, generation: u64) -> Result<(), CtlError> {
    let client = session.client()?;
    let urls: BTreeMap<&String, &String> = known(before)
        .flat_map(|known| known.members.iter())
        .collect();
    let names: Vec<&str> = known(before).map(|known| known.name.as_str()).collect();
    let deadline = clock::now() + LONGEST_WAIT;
    loop {
        let topology = session.look().await?;
        let mut left = Vec::new();
        for name in &names {
            let url = urls.iter().find(|(other, _)| other.as_str() == *name);
            let own = session.config.agent.as_ref();
            let Some(url) = url.map(|(_, url)| *url).or(own) else {
                continue;
            };
            match ask(&client, session.keys.prefix(), url).await {
                Ok(known) if known.went_back.is_none() && known.generation >= generation => {}
                Ok(_) | Err(_) => left.push(*name),
            }
        }
        let leader = topology.leader.as_ref();
        if left.is_empty()
            && let Some(leader) = leader
        {
            return session.terminal.success(&format!(
                "Every member that answers believes the DCS; {} leads",
                leader.member
            ));
        }
        if clock::now() >= deadline {
            let why = match left.is_empty() {
                true => "the DCS is believed and nobody leads; trunkline list says why".to_owned(),
                false => format!("the DCS is not believed yet by {}", left.join(", ")),
            };
            return Err(CtlError::Failed(why));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::ClusterName;
    use trunkline_shared::dcs::{Compare, Listing};

    use super::*;

    fn answer(name: &str, generation: u64, revision: i64, went_back: bool, id: &str) -> Known {
        let keys = (!id.is_empty()).then(|| ("/service/demo/initialize".to_owned(), id.to_owned()));
        Known {
            name: name.to_owned(),
            generation,
            revision,
            went_back: went_back.then(|| "gone".to_owned()),
            keys: keys.into_iter().collect(),
            cluster_id: "0".to_owned(),
            ..Known::default()
        }
    }

    fn answers(known: Vec<Known>) -> Answers {
        let all = known
            .into_iter()
            .map(|known| (known.name.clone(), Ok(known)));
        all.chain([("z".to_owned(), Err("no answer".to_owned()))])
            .collect()
    }

    #[test]
    fn the_newest_knowledge_is_written_with_a_number_above_all() {
        let all = answers(vec![
            answer("a", 1, 900, true, "7"),
            answer("b", 2, 100, true, "7"),
            answer("c", 2, 90, false, "7"),
            answer("d", 3, 5, true, ""),
        ]);
        assert_eq!(wisest(&all, &Doubted::default()).unwrap().name, "b");
        assert_eq!(next_generation(&all, &Topology::default()), 4);
        assert_eq!(silent(&all), ["z"]);
    }

    #[test]
    fn nothing_is_accepted_unasked_or_between_clusters() {
        let says = |all: &Answers| wisest(all, &Doubted::default()).unwrap_err().to_string();
        assert!(says(&answers(vec![])).contains("no agent answers"));
        let believed = answers(vec![answer("a", 1, 1, false, "7")]);
        assert!(says(&believed).contains("nothing to accept"));
        let two = answers(vec![
            answer("a", 1, 1, true, "7"),
            answer("b", 1, 1, true, "8"),
        ]);
        assert!(says(&two).contains("different clusters"));
        let mut data = answer("c", 0, 1, true, "");
        data.system = Some("9".to_owned());
        let other = answers(vec![answer("a", 1, 1, true, "7"), data]);
        assert!(says(&other).contains("different clusters"));
    }

    #[test]
    fn who_was_told_or_believes_an_old_copy_does_not_know_it_better_for_a_higher_revision() {
        let mut told = answer("c", 1, 5000, true, "7");
        told.is_told = true;
        let all = answers(vec![
            answer("a", 1, 900, true, "7"),
            answer("b", 1, 6000, false, "7"),
            told,
        ]);
        assert_eq!(wisest(&all, &Doubted::default()).unwrap().name, "a");
    }

    #[test]
    fn who_remembers_a_later_write_than_an_old_copy_shows_knows_it_best_though_he_has_not_met_it() {
        let mut shown = Doubted::default();
        shown.topology.failsafe_revision = 40;
        let mut met = answer("b", 0, 60, false, "7");
        met.written.failsafe = 40;
        let believed = answers(vec![met.clone()]);
        assert!(wisest(&believed, &shown).is_err());
        let mut remembers = answer("a", 0, 50, false, "7");
        remembers.written.failsafe = 45;
        let all = answers(vec![remembers.clone(), met.clone()]);
        assert_eq!(wisest(&all, &shown).unwrap().name, "a");
        // Of another DCS its revisions tell nothing.
        remembers.cluster_id = "8".to_owned();
        let all = answers(vec![remembers, met]);
        assert!(wisest(&all, &shown).is_err());
    }

    /// The DCS names `leader` on a lease; its other keys are `/sync` and the records of the members.
    fn led(leader: &str, lease: i64, answers: Answers) -> Seen {
        let entry = |key: FactKey, value: &str, lease| Entry {
            key: demo().path(&key),
            value: value.as_bytes().to_vec(),
            mod_revision: 50,
            lease,
        };
        let member = |name| entry(FactKey::Member(MemberName::new(name)), "{}", 9);
        let listing = Listing {
            entries: vec![
                entry(FactKey::Leader, leader, lease),
                entry(FactKey::Sync, r#"{"leader":"b","sync_standby":"c"}"#, 0),
                member("a"),
                member("b"),
            ],
            ..Listing::default()
        };
        Seen {
            doubted: recreation::shown(&demo(), listing),
            answers,
        }
    }

    fn demo() -> Keys {
        Keys::new("service", &ClusterName::new("demo"))
    }

    #[test]
    fn keys_by_which_somebody_leads_stay_and_only_the_generation_grows() {
        let all = answers(vec![
            answer("a", 1, 900, true, "7"),
            answer("b", 1, 60, false, "7"),
        ]);
        let seen = led("b", 9, all);
        let order = order(&demo(), &seen).unwrap();
        assert_eq!(order.led_by, Some(MemberName::new("b")));
        refuse_a_live_lease(&demo(), &seen, &order).unwrap();
        let path = |key| demo().path(&key);
        let put = |key, text: &str| Operation::Put {
            key: path(key),
            value: text.as_bytes().to_vec(),
            lease: 0,
        };
        assert_eq!(
            order.recreation.then,
            [
                put(FactKey::Generation, "2"),
                put(FactKey::Succeeds, r#"{"stores":[]}"#)
            ]
        );
        let leader = Compare::ModRevision(path(FactKey::Leader), 50);
        assert!(order.recreation.when.contains(&leader));
    }

    #[test]
    fn the_store_names_all_that_anybody_knew_before_it() {
        let mut late = answer("a", 0, 900, true, "7");
        late.cluster_id = "c1".to_owned();
        let mut newer = answer("b", 1, 60, true, "7");
        newer.cluster_id = "c3".to_owned();
        newer.keys.insert(
            demo().path(&FactKey::Succeeds),
            r#"{"stores":["c0","c2"]}"#.to_owned(),
        );
        let mut anew = answer("c", 1, 0, true, "");
        anew.cluster_id = "0".to_owned();
        let seen = led("", 0, answers(vec![newer, late, anew]));
        let succession = succession(&demo(), &seen);
        assert_eq!(succession.generation, 2);
        assert_eq!(succession.stores, [0xc1, 0xc0, 0xc2, 0xc3]);
    }

    #[test]
    fn a_leader_key_on_a_live_lease_is_never_taken_from_who_does_not_answer() {
        let doubting = || answers(vec![answer("a", 1, 900, true, "7")]);
        for (leader, says) in [
            ("z", "does not answer: no answer"),
            ("a", "does not believe"),
            ("p", "no agent of that name"),
        ] {
            let seen = led(leader, 9, doubting());
            let order = order(&demo(), &seen).unwrap();
            let refused = refuse_a_live_lease(&demo(), &seen, &order).unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
            let delete = Operation::Delete(demo().path(&FactKey::Leader));
            assert!(!order.recreation.then.contains(&delete), "{leader}");
        }
        // On none it is of a copy that was written by hand, and stands for ever.
        let seen = led("z", 0, doubting());
        let order = order(&demo(), &seen).unwrap();
        refuse_a_live_lease(&demo(), &seen, &order).unwrap();
        let delete = Operation::Delete(demo().path(&FactKey::Leader));
        assert!(order.recreation.then.contains(&delete));
    }

    #[test]
    fn what_was_written_while_the_operator_waited_is_not_overwritten_and_who_believes_stays_listed()
    {
        let all = |revision| {
            answers(vec![
                answer("a", 1, revision, true, "7"),
                answer("b", 1, 60, false, "7"),
            ])
        };
        let agreed = order(&demo(), &led("", 0, all(900))).unwrap();
        let sync = Compare::ModRevision(demo().path(&FactKey::Sync), 50);
        assert!(agreed.recreation.when.contains(&sync));
        let deleted = |name| {
            let record = FactKey::Member(MemberName::new(name));
            let delete = Operation::Delete(demo().path(&record));
            agreed.recreation.then.contains(&delete)
        };
        assert_eq!((deleted("a"), deleted("b")), (true, false));
        let same = order(&demo(), &led("", 0, all(901))).unwrap();
        assert_eq!(decides(&demo(), &agreed), decides(&demo(), &same));
        let led_now = order(&demo(), &led("b", 9, all(900))).unwrap();
        assert_ne!(decides(&demo(), &agreed), decides(&demo(), &led_now));
    }

    #[test]
    fn where_all_have_started_since_the_data_says_which_cluster_it_is() {
        let mut known = answer("a", 0, 0, true, "");
        known.system = Some("7".to_owned());
        let empty = answer("b", 0, 0, true, "");
        let all = answers(vec![known, empty]);
        let best = wisest(&all, &Doubted::default()).unwrap();
        assert_eq!(system(best, &all).unwrap(), "7");
    }

    #[test]
    fn the_number_of_a_promotion_that_only_the_data_shows_is_claimed() {
        let mut ahead = answer("a", 0, 0, true, "7");
        ahead.timeline = 3;
        let all = answers(vec![ahead, answer("b", 0, 0, true, "7")]);
        let known = |timeline| {
            let claimed = ClaimedTimeline {
                timeline: Timeline(timeline),
                parent: Timeline(1),
            };
            newer_claim(Some(&claimed_to_json(claimed)), &all)
        };
        let claimed = known(2).unwrap();
        assert_eq!(
            (claimed.timeline, claimed.parent),
            (Timeline(3), Timeline(2))
        );
        assert_eq!(newer_claim(None, &all), Some(claimed));
        assert_eq!((known(3), known(4)), (None, None));
    }
}
