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

use trunkline_agent::decide::decision::Action;
use trunkline_agent::decide::observation::LeaseView;
use trunkline_agent::decide::script::print::to_script;
use trunkline_agent::decide::script::{Line, Scene};
use trunkline_agent::decide::{Memory, Observation, decide};

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
        if command.name == "decide" {
            return Ok(self.decide());
        }
        let words = command.args.iter().map(|arg| match arg {
            Argument::KeyValue(key, value) => (Some(key.as_str()), value.as_str()),
            Argument::Positional(word) => (None, word.as_str()),
            other => panic!("{other} is neither a word nor a pair"),
        });
        let line = Line {
            name: &command.name,
            words: words.collect(),
        };
        self.scene.take(&line)?;
        Ok(String::new())
    }
}

impl Script {
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
        self.scene.memory = decision.memory.clone();
        let asks = if self.scene.memory.wants_peers {
            "\n  asks peers"
        } else {
            ""
        };
        assert!(
            decision
                .actions
                .iter()
                .all(|a| Action::WORDS.contains(&a.word()))
        );
        format!("{decision}{asks}\n")
    }
}

fn parse(text: &str) -> (Observation, Memory) {
    let mut scene = Scene::default();
    for line in text.lines() {
        scene.take_text(line).expect("a printed line parses");
    }
    (scene.seen, scene.memory)
}
