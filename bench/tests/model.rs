//! The models' share of every test run: each is visited whole within small bounds, and each broken rule is found.

use trunkline_bench::model::Named;

#[test]
fn every_model_is_visited_whole_and_keeps_its_properties() {
    for model in Named::ALL {
        let outcome = model.visit(false);
        let explored = &outcome.explored;
        println!(
            "{}: {} members, depth {}, {} states, {} properties, {:.1} s",
            model.word(),
            model.members(model.size(false)),
            explored.depth,
            explored.states,
            outcome.properties.len(),
            explored.seconds
        );
        assert!(outcome.is_well(), "{}: {explored:#?}", model.word());
    }
}

#[test]
fn every_rule_broken_on_purpose_breaks_its_property() {
    for model in Named::ALL {
        for (rule, property) in model.rules() {
            let explored = model.break_rule(*rule, property).explored;
            let broken = explored.broken.as_ref().map(|broken| broken.property);
            let (model, rule) = (model.word(), rule.word());
            assert_eq!(
                broken,
                Some(*property),
                "{model} with {rule}: {explored:#?}"
            );
        }
    }
}
