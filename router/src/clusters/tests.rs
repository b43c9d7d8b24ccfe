use super::*;
use crate::config::pattern::Pattern;

fn names(texts: &[&str]) -> BTreeSet<ClusterName> {
    texts.iter().map(|text| ClusterName::new(text)).collect()
}

fn scopes(named: &[&str], patterns: &[&str]) -> Scopes {
    Scopes {
        named: names(named),
        patterns: patterns.iter().map(|text| Pattern::new(text)).collect(),
    }
}

fn followed(clusters: &Clusters) -> Vec<String> {
    let all = clusters.all();
    all.iter().map(|own| own.name.to_string()).collect()
}

fn find(clusters: &Clusters, name: &str) -> Result<Followed, NotFollowed> {
    clusters.find(&ClusterName::new(name))
}

fn why_not(clusters: &Clusters, name: &str) -> Option<NotFollowed> {
    find(clusters, name).err()
}

const START: Moment = Moment(0);

#[test]
fn a_cluster_that_comes_under_the_namespace_is_followed_where_a_pattern_names_it() {
    let clusters = Clusters::new(scopes(&["main"], &["shard-*"]), names(&["main"]), []);
    assert_eq!(followed(&clusters), ["main"]);
    // Nobody knows yet.
    assert_eq!(why_not(&clusters, "shard-1"), Some(NotFollowed::Unseen));
    assert_eq!(why_not(&clusters, "other"), Some(NotFollowed::Unknown));
    clusters.hear(names(&["shard-1", "other"]), START);
    assert_eq!(followed(&clusters), ["main", "shard-1"]);
    assert_eq!(why_not(&clusters, "shard-2"), Some(NotFollowed::Unknown));
    assert_eq!(why_not(&clusters, "other"), Some(NotFollowed::Unknown));
    clusters.hear(names(&["shard-1", "shard-2"]), START);
    assert_eq!(why_not(&clusters, "shard-2"), None);
    clusters.lose_sight("away");
    assert_eq!(why_not(&clusters, "shard-2"), None);
    assert_eq!(why_not(&clusters, "shard-3"), Some(NotFollowed::Unseen));
}

#[test]
fn a_cluster_whose_keys_are_gone_is_followed_until_it_is_long_and_nobody_uses_it() {
    let clusters = Clusters::new(scopes(&[], &["*"]), names(&[]), []);
    clusters.hear(names(&["a", "b"]), START);
    let user = find(&clusters, "a").unwrap();
    let number = user.cluster.number;
    clusters.hear(names(&[]), START);
    let soon = START + (FORGET_AFTER - Duration::from_millis(1));
    assert!(clusters.sweep(soon).is_empty());
    let late = START + FORGET_AFTER;
    clusters.lose_sight("away");
    assert!(
        clusters.sweep(late).is_empty(),
        "what is gone cannot be seen"
    );
    clusters.hear(names(&[]), late);
    let retired = clusters.sweep(late);
    assert_eq!(retired.len(), 1);
    assert!(retired[0].is_gone && retired[0].cluster.name.as_str() == "b");
    assert_eq!(followed(&clusters), ["a"], "it is used");
    drop(user);
    // It came back and went again: its time begins anew.
    clusters.hear(names(&["a"]), late);
    clusters.hear(names(&[]), late);
    assert!(clusters.sweep(late).is_empty());
    assert_eq!(clusters.sweep(late + FORGET_AFTER).len(), 1);
    assert_eq!(why_not(&clusters, "a"), Some(NotFollowed::Unknown));
    // Another one of that name has lanes of its own.
    clusters.hear(names(&["a"]), late);
    assert_ne!(find(&clusters, "a").unwrap().cluster.number, number);
}

#[test]
fn a_reload_takes_up_new_clusters_and_lets_go_of_old_ones_once_nobody_uses_them() {
    let clusters = Clusters::new(scopes(&["port", "old", "used"], &[]), names(&["port"]), []);
    let user = find(&clusters, "used").unwrap();
    clusters.want(scopes(&["new"], &[]));
    assert_eq!(followed(&clusters), ["new", "old", "port", "used"]);
    let retired = clusters.sweep(START);
    assert_eq!(retired.len(), 1);
    assert!(!retired[0].is_gone);
    drop(user);
    assert_eq!(clusters.sweep(START).len(), 1);
    assert_eq!(followed(&clusters), ["new", "port"]);
    assert!(clusters.own(&ClusterName::new("port")).is_some());
    assert!(clusters.own(&ClusterName::new("new")).is_none());
    // Patterns that begin otherwise are looked for anew.
    clusters.want(scopes(&["new"], &["a*"]));
    clusters.hear(names(&["a1"]), START);
    clusters.want(scopes(&["new"], &["a*", "b*"]));
    assert_eq!(why_not(&clusters, "b1"), Some(NotFollowed::Unseen));
    assert_eq!(why_not(&clusters, "a1"), None);
}

#[test]
fn no_more_are_followed_than_may_be_and_room_is_used() {
    let clusters = Clusters::new(scopes(&[], &["c*"]), names(&[]), []);
    let all = |from: usize| (from..from + MAX_CLUSTERS).map(|n| ClusterName::new(&format!("c{n}")));
    clusters.hear(all(1000), START);
    assert_eq!(clusters.all().len(), MAX_CLUSTERS);
    clusters.hear(all(1001), START);
    let last = format!("c{}", 1000 + MAX_CLUSTERS);
    assert_eq!(
        why_not(&clusters, &last),
        Some(NotFollowed::TooMany(MAX_CLUSTERS))
    );
    let (sight, left_out) = clusters.namespace().unwrap();
    assert_eq!((sight, left_out.len()), (Sight::Clear, 1));
    assert_eq!(clusters.sweep(START + FORGET_AFTER).len(), 1);
    assert_eq!(why_not(&clusters, &last), None);
    assert!(clusters.namespace().unwrap().1.is_empty());
}

#[test]
fn what_an_earlier_process_followed_is_followed_before_the_dcs_answers() {
    let remembered = names(&["shard-1", "other"]);
    let clusters = Clusters::new(scopes(&[], &["shard-*"]), names(&[]), remembered);
    assert_eq!(followed(&clusters), ["shard-1"]);
    // Its table is not there.
    assert!(clusters.cannot_route_yet().unwrap().contains("shard-1"));
    let clusters = Clusters::new(scopes(&[], &["shard-*"]), names(&[]), []);
    clusters.lose_sight("permission denied");
    let why = clusters.cannot_route_yet().unwrap();
    assert!(why.contains("permission denied"), "{why}");
    clusters.hear(names(&[]), START);
    assert_eq!(clusters.cannot_route_yet(), None);
    // One that comes later holds up nobody.
    clusters.hear(names(&["shard-1"]), START);
    assert_eq!(clusters.cannot_route_yet(), None);
}
