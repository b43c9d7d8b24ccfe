//! `--validate-config`: what is wrong with a configuration, as far as it can be known without starting anything.
//! Beyond its words these are the ports, folders, files, programs and parameters that it names. Every mistake is
//! told, not the first alone, and everything works as root, too.

use std::path::Path;

use crate::config::{self, AgentConfig, Environment, Examined, Mistake, Warning};

mod addresses;
mod paths;
mod server;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// A port that is in use is no mistake: the member's own server or agent may run.
    pub ignore_listen_port: bool,
}

/// Reads the configuration and looks at everything that it names.
pub async fn validate(path: Option<&Path>, env: &Environment, asked: Asked) -> Examined {
    let examined = config::examine(path, env);
    let Some(config) = examined.config.clone() else {
        return examined;
    };
    let mut findings = Findings {
        config: &config,
        mistakes: examined.mistakes,
        warnings: examined.warnings,
    };
    addresses::check(&mut findings, asked).await;
    server::check(&mut findings).await;
    paths::check(&mut findings);
    let Findings {
        mistakes, warnings, ..
    } = findings;
    Examined {
        mistakes,
        warnings,
        config: examined.config,
    }
}

/// What was found so far, of this configuration.
struct Findings<'c> {
    config: &'c AgentConfig,
    mistakes: Vec<Mistake>,
    warnings: Vec<Warning>,
}

impl Findings<'_> {
    /// The configuration cannot be used: `why` says what is wrong with what `key` names, and what to do.
    fn mistake(&mut self, key: &str, why: String) {
        let mistake = Mistake::Refused {
            origin: self.config.source.origin(key),
            key: key.to_owned(),
            why,
        };
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// It can be used, and something of it may not be as it was meant.
    fn warn(&mut self, key: &str, done: String) {
        self.warnings.push(Warning::Contradiction {
            origin: self.config.source.origin(key),
            key: key.to_owned(),
            done,
        });
    }
}
