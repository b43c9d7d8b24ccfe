//! The simulation's share of every test run: a fixed set of seeds, and that broken rules are noticed.

use std::sync::atomic::{AtomicUsize, Ordering};

use trunkline_bench::simulation::{Break, Bug, Failure, Options, play, play_all, shrink};
use trunkline_bench::simulation::{Coverage, RARE, UNREACHED};

/// The fixed seeds.
const SEEDS: u64 = 5_000;
/// A broken rule is noticed within so many seeds.
const SEEDS_TO_NOTICE: u64 = 15_000;
/// So many faults are enough for a rule that is broken at every failover.
const FAULTS_NEEDED: u8 = 3;

#[test]
fn five_thousand_histories_keep_every_invariant_and_reach_everything() {
    let report = play_all(0..SEEDS, Options::default(), 1);
    if let Some((seed, _)) = report.failures.first() {
        let shrunk = shrink(*seed, Options::default()).expect("it failed before");
        panic!("{}", shrunk.story());
    }
    assert_eq!(
        report.coverage.missing(),
        [],
        "never reached in {SEEDS} seeds"
    );
    assert_eq!(
        report.coverage.reached_though_excused(),
        Vec::<&str>::new(),
        "no excuse is needed"
    );
    assert!(report.events / SEEDS >= 300, "too few events a seed");
    assert!(report.faults / SEEDS >= 2, "too few faults a seed");
    let unjudged = report.coverage.unjudged();
    assert!(
        unjudged <= SEEDS / 1000,
        "{unjudged} seeds are not judged to their end"
    );
}

#[test]
fn clusters_of_two_to_five_keep_every_invariant() {
    let options = Options {
        members: None,
        ..Options::default()
    };
    let report = play_all(1_000_000..1_000_500, options, 1);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

/// Histories that once broke an invariant: seed and, where they need another than three, members.
const FOUND: [(u64, Option<u8>); 76] = [
    (467, Some(3)),
    (47_040, Some(3)),
    (40_709, Some(3)),
    (45_298, Some(3)),
    (1_014_207, None),
    (84_957, Some(3)),
    (22_422, Some(3)),
    (27_851, Some(3)),
    (41_535, Some(3)),
    (53_074, Some(3)),
    (7_122, Some(3)),
    (16_898, Some(3)),
    (6_228, Some(3)),
    (16_067, Some(3)),
    (35_507, Some(3)),
    (72_667, Some(3)),
    (73_019, Some(3)),
    (43_747, Some(3)),
    (54_676, Some(3)),
    (89_986, Some(3)),
    (152_409, Some(3)),
    (1_018_818, None),
    (1_029_659, None),
    (8_288, Some(3)),
    (1_643, Some(3)),
    (1_000_083, None),
    (9_233, Some(3)),
    (27_286, Some(3)),
    (40_445, Some(3)),
    (56_761, Some(3)),
    (58_882, Some(3)),
    (76_440, Some(3)),
    (83_669, Some(3)),
    (9_066, Some(3)),
    (18_532, Some(3)),
    (1_089_039, Some(3)),
    (1_063_333, Some(3)),
    (1_003_748, Some(3)),
    (1_081_518, Some(3)),
    (1_175_443, Some(3)),
    (1_082_174, Some(3)),
    (1_115_748, Some(3)),
    (1_118_281, Some(3)),
    (1_123_273, Some(3)),
    (1_123_346, Some(3)),
    (1_126_961, Some(3)),
    (1_139_262, Some(3)),
    (1_229_803, Some(3)),
    (1_142_237, Some(3)),
    (3_064, Some(3)),
    (1_203_836, Some(3)),
    (1_021_451, Some(3)),
    (2_010_976, Some(3)),
    (40_003_136, Some(3)),
    (51_000_767, Some(3)),
    (50_000_876, Some(3)),
    (50_034_975, Some(3)),
    (50_039_279, Some(3)),
    (50_031_164, Some(3)),
    (120_275_540, Some(3)),
    (130_639_801, Some(3)),
    (142_733_619, Some(3)),
    (142_367_532, Some(3)),
    (142_981_949, Some(3)),
    (143_027_701, Some(3)),
    (151_135_491, Some(3)),
    (151_651_630, Some(3)),
    (161_822_438, Some(3)),
    (170_321_383, Some(3)),
    (170_794_050, Some(3)),
    (180_077_568, Some(3)),
    (180_115_884, Some(3)),
    (50_570, Some(3)),
    (190_288_004, Some(3)),
    (190_445_482, Some(3)),
    (191_022_471, Some(3)),
];

#[test]
fn what_was_found_once_stays_mended() {
    for (seed, members) in FOUND {
        let options = Options {
            members,
            ..Options::default()
        };
        let failure = play(seed, options, &mut Coverage::default(), false).failure;
        assert!(failure.is_none(), "seed {seed}: {failure:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    let mut coverage = Coverage::default();
    for seed in [3, 77, 512] {
        let first = play(seed, Options::default(), &mut coverage, true);
        let second = play(seed, Options::default(), &mut coverage, true);
        assert_eq!(first.events, second.events);
        assert!(first.story == second.story, "seed {seed} tells two stories");
    }
}

#[test]
fn what_few_histories_reach_is_reached_by_those() {
    for (name, seed) in RARE {
        let mut coverage = Coverage::default();
        let failure = play(*seed, Options::default(), &mut coverage, false).failure;
        assert!(failure.is_none(), "seed {seed}: {failure:?}");
        assert!(
            coverage.has_reached(name),
            "seed {seed} no longer reaches {name}: find another"
        );
    }
}

/// Rules that few histories need, and from where on each is looked for: with other histories it only takes longer.
const SELDOM: [(Break, u64); 6] = [
    (Break::ListForgotten, 1_400),
    (Break::NoWordLeft, 2_050),
    (Break::Historical(Bug::ReplayCompared), 8_200),
    (Break::PingedToTheEnd, 11_350),
    (Break::Historical(Bug::PositionsFromBefore), 12_300),
    (Break::StoreForgotten, 38_800),
];

/// The first seed in which a broken rule's own invariant is broken, whatever other one notices before. Without the
/// break no seed fails: whatever is noticed comes of it.
fn noticed(rule: Break) -> Option<(u64, Failure)> {
    let seldom = SELDOM.iter().find(|(known, _)| *known == rule);
    let from = seldom.map_or(0, |(_, from)| *from);
    let report = play_all(from..from + SEEDS_TO_NOTICE, broken(rule), 1);
    report.failures.into_iter().next()
}

fn broken(rule: Break) -> Options {
    Options {
        rule: Some(rule),
        is_patient: true,
        ..Options::default()
    }
}

#[test]
fn every_rule_broken_on_purpose_is_noticed_by_its_invariant() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((rule, word)) = Break::ALL.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    assert!(noticed(*rule).is_some(), "{word} is not noticed");
                }
            });
        }
    });
}

#[test]
fn a_failing_seed_is_told_with_the_faults_that_it_needs_and_no_others() {
    for rule in [Break::NoFence, Break::Historical(Bug::FencedGently)] {
        let (seed, failure) = noticed(rule).expect("it is noticed");
        let shrunk = shrink(seed, broken(rule)).expect("it failed before");
        let word = rule.word();
        assert_eq!(shrunk.failure.invariant, failure.invariant, "{word}");
        assert!(shrunk.left <= FAULTS_NEEDED, "{word}: {shrunk:?}");
        let told = shrunk.story();
        let without = match shrunk.options.without {
            none if none.is_empty() => String::new(),
            some => format!(" --without {some}"),
        };
        let again = format!("--replay {seed}{without} --break {word} --patient");
        assert!(told.contains(&again), "{told}");
        // Played as the command says, it is broken again, and without any one of what is left it is not.
        let outcome = play(seed, shrunk.options, &mut Coverage::default(), false);
        assert_eq!(
            outcome.failure.map(|f| f.invariant),
            Some(failure.invariant)
        );
        assert_eq!(outcome.drawn, shrunk.drawn);
    }
}

#[test]
fn what_is_excused_is_few_and_explained() {
    assert!(UNREACHED.len() <= 6 && RARE.len() <= 5);
    assert!(UNREACHED.iter().all(|(_, why)| why.len() > 20));
    let rows = Coverage::default().rows();
    let rare = RARE.iter().map(|(name, _)| name);
    for name in UNREACHED.iter().map(|(name, _)| name).chain(rare) {
        let is_counted = rows.iter().any(|(_, known, _)| known == name);
        assert!(is_counted, "{name} is nothing that could be reached");
    }
}
