//! Runs every script of `tests/decide`: a behaviour each, named by its claim. To record a new script,
//! write its commands, run with `UPDATE_GOLDENFILES=1`, and review what it wrote.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::error::Error;
use std::path::Path;

use goldenscript::{Argument, Command, Context, Runner};
use test_each_file::test_each_path;

use trunkline_agent::decide::announce::announcement;
use trunkline_agent::decide::decision::Action;
use trunkline_agent::decide::observation::LeaseView;
use trunkline_agent::decide::script::print::to_script;
use trunkline_agent::decide::script::{Line, Scene, ScriptError, outcome, test_case};
use trunkline_agent::decide::{Memory, Observation, decide};
use trunkline_shared::dcs::records::member_to_json;

test_each_path! { in "./agent/tests/decide" => run }

fn run(path: &Path) {
    goldenscript::run(&mut Script::default(), path).expect("script");
}

#[derive(Default)]
struct Script {
    scene: Scene,
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        match command.name.as_str() {
            "decide" => return Ok(self.decide()),
            "announce" => return Ok(self.announce()),
            _ => take(&mut self.scene, command)?,
        }
        Ok(String::new())
    }
}

impl Script {
    /// The member's record after the next decision.
    fn announce(&self) -> String {
        let seen = &self.scene.seen;
        let decision = decide(seen, &self.scene.memory);
        let record = announcement(
            seen,
            &decision,
            &"http://a:8008/patroni".into(),
            &"1".into(),
        );
        member_to_json(&record)
    }

    fn decide(&mut self) -> String {
        let seen = &self.scene.seen;
        let decision = decide(seen, &self.scene.memory);
        let left = match &seen.lease {
            LeaseView::Held(held) => Some(seen.now.until(held.deadline)),
            LeaseView::NotHeld | LeaseView::Lost => None,
        };
        assert_eq!(decision.broken_rule(seen, left), None, "{decision}");
        let again = decide(seen, &self.scene.memory);
        assert_eq!(
            decision, again,
            "the same observation gives the same decision"
        );
        let printed = to_script(seen, &self.scene.memory);
        let (copy, copied_memory) = parse(&printed);
        let replayed = decide(&copy, &copied_memory).to_string();
        assert_eq!(
            decision.to_string(),
            replayed,
            "the recorded observation replays:\n{printed}"
        );
        let case = test_case(&printed).expect("a printed scene makes a script");
        let recorded = goldenscript::generate(&mut Replay::default(), &case).expect("its form");
        assert_eq!(
            recorded, case,
            "the script of a recorded observation is accepted"
        );
        self.scene.memory = decision.memory.clone();
        assert!(
            decision
                .actions
                .iter()
                .all(|a| Action::WORDS.contains(&a.word()))
        );
        outcome(&decision)
    }
}

/// Runs a script that was made of a recorded observation.
#[derive(Default)]
struct Replay(Scene);

impl Runner for Replay {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        if command.name == "decide" {
            return Ok(outcome(&decide(&self.0.seen, &self.0.memory)));
        }
        take(&mut self.0, command)?;
        Ok(String::new())
    }
}

fn take(scene: &mut Scene, command: &Command) -> Result<(), ScriptError> {
    let words = command.args.iter().map(|arg| match arg {
        Argument::KeyValue(key, value) => (Some(key.as_str()), value.as_str()),
        Argument::Positional(word) => (None, word.as_str()),
        other => panic!("{other} is neither a word nor a pair"),
    });
    scene.take(&Line {
        name: &command.name,
        words: words.collect(),
    })
}

fn parse(text: &str) -> (Observation, Memory) {
    let mut scene = Scene::default();
    for line in text.lines() {
        scene.take_text(line).expect("a printed line parses");
    }
    (scene.seen, scene.memory)
}
