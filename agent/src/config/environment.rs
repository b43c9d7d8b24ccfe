//! Environment variables: `TRUNKLINE_*`, and Patroni's `PATRONI_*` of the same meaning. Where both are
//! set, `TRUNKLINE_*` wins. An empty variable is none, as in Patroni.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::document::{self, Node, Origin, Value};
use super::section::nearest;
use super::{Mistake, Warning};

mod variables;

use variables::{Form, OTHER_KEYS, OTHER_SECTIONS, ROLE_SETTINGS, ROLES, VARIABLES};

/// The environment of the process, or what a test gives in its place.
pub type Environment = BTreeMap<String, String>;

/// The environment of this process. Variables that are not UTF-8 are nobody's.
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

const PATRONIS: &str = "PATRONI_";
const OWN: &str = "TRUNKLINE_";

/// A whole document in one variable: in the place of a file, as in Patroni.
const DOCUMENT: &str = "CONFIGURATION";

/// Variables that other programs of the family read; not part of the configuration.
const ELSEWHERE: [&str; 4] = ["CONFIG_FILE", "LOG_FILTER", "SUCCESSION", "VERSION"];

/// What the environment says.
#[derive(Debug)]
pub struct Overlay {
    /// To be laid over the files.
    pub document: Node,
    /// About variables that nobody reads.
    pub warnings: Vec<Warning>,
    /// Texts that cannot be read.
    pub mistakes: Vec<Mistake>,
}

/// Reads the variables. `has_file`: a file was given, so no document is taken from the environment.
pub fn overlay(env: &Environment, has_file: bool) -> Overlay {
    let mut overlay = Overlay {
        document: Node::empty("environment"),
        warnings: Vec::new(),
        mistakes: Vec::new(),
    };
    let base = overlay.take_document(env, has_file);
    for prefix in [PATRONIS, OWN] {
        // Patroni goes by its document alone, where it has one.
        let is_ignored = prefix == PATRONIS && base == Some(PATRONIS);
        for (variable, text) in env {
            let Some(name) = variable.strip_prefix(prefix) else {
                continue;
            };
            if name == DOCUMENT || ELSEWHERE.contains(&name) || text.is_empty() {
                continue;
            }
            if is_ignored {
                overlay.warnings.push(Warning::VariableIgnored {
                    variable: variable.clone(),
                    why: "PATRONI_CONFIGURATION is set, and Patroni reads no other variable then"
                        .to_owned(),
                });
            } else {
                overlay.take(prefix, variable, name, text);
            }
        }
    }
    overlay
}

impl Overlay {
    /// Takes the document of the environment; returns whose it was.
    fn take_document(&mut self, env: &Environment, has_file: bool) -> Option<&'static str> {
        let mut taken = None;
        for prefix in [OWN, PATRONIS] {
            let variable = format!("{prefix}{DOCUMENT}");
            let Some(text) = env.get(&variable).filter(|text| !text.is_empty()) else {
                continue;
            };
            let why = match (has_file, taken) {
                (true, _) => "a file is given",
                (false, Some(_)) => "TRUNKLINE_CONFIGURATION is set",
                (false, None) => {
                    taken = Some(prefix);
                    self.parse(&variable, text, &[]);
                    continue;
                }
            };
            self.warnings.push(Warning::VariableIgnored {
                variable,
                why: why.to_owned(),
            });
        }
        taken
    }

    fn take(&mut self, prefix: &str, variable: &str, name: &str, text: &str) {
        let Some((path, form)) = meaning(name) else {
            self.warnings.push(Warning::UnknownVariable {
                variable: variable.to_owned(),
                suggestion: meant(name).map(|meant| format!("{prefix}{meant}")),
            });
            return;
        };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        // A template of the log may begin so, too.
        let is_yaml_list = text.trim_start().starts_with(['-', '[']) && !text.contains("%(");
        match form {
            Form::Texts | Form::Lines if is_yaml_list => self.parse(variable, text, &path),
            Form::Text | Form::Texts => {
                let node = Node::from_environment(variable, text);
                self.document.merge(node.nested(&path));
            }
            Form::Lines => {
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                let origin = Origin::Environment(Arc::from(variable));
                let list = Node {
                    value: Value::List(
                        lines
                            .map(|line| Node::from_environment(variable, line))
                            .collect(),
                    ),
                    origin,
                };
                self.document.merge(list.nested(&path));
            }
            Form::Mapping => {
                let is_whole =
                    text.trim_start().starts_with(['{', '-', '[']) || text.contains('\n');
                let whole = match is_whole {
                    true => text.to_owned(),
                    false => format!("{{{text}}}"),
                };
                self.parse(variable, &whole, &path);
            }
        }
    }

    /// Lays the YAML of a variable over what is there, below `path`.
    fn parse(&mut self, variable: &str, text: &str, path: &[&str]) {
        match document::parse(variable, text) {
            Ok((node, duplicates)) => {
                let twice = duplicates.into_iter().map(Warning::DuplicateKey);
                self.warnings.extend(twice);
                let node = node.moved_to(&Origin::Environment(Arc::from(variable)));
                self.document.merge(node.nested(path));
            }
            Err(malformed) => self.mistakes.push(Mistake::Malformed {
                path: format!("environment variable {variable}"),
                line: malformed.line,
                why: malformed.why,
            }),
        }
    }
}

/// The key that a variable sets, and how its text is read.
fn meaning(name: &str) -> Option<(Vec<String>, Form)> {
    if let Some((_, key, form)) = VARIABLES.iter().find(|(known, _, _)| *known == name) {
        return Some((key.split('.').map(str::to_owned).collect(), *form));
    }
    let of_a_role = ROLES.iter().find_map(|(prefix, role)| {
        let setting = name.strip_prefix(prefix)?;
        let known = ROLE_SETTINGS.contains(&setting);
        let path = [
            "postgresql",
            "authentication",
            *role,
            &setting.to_lowercase(),
        ];
        known.then(|| (path.map(str::to_owned).to_vec(), Form::Text))
    });
    of_a_role.or_else(|| {
        OTHER_SECTIONS.iter().find_map(|section| {
            let key = name.strip_prefix(section)?;
            let section = section.trim_end_matches('_').to_lowercase();
            let is_known = OTHER_KEYS.contains(&key);
            is_known.then(|| (vec![section, key.to_lowercase()], Form::Text))
        })
    })
}

fn meant(name: &str) -> Option<String> {
    let roles: Vec<String> = ROLES
        .iter()
        .flat_map(|(role, _)| ROLE_SETTINGS.iter().map(move |s| format!("{role}{s}")))
        .collect();
    let known = VARIABLES.iter().map(|(known, _, _)| *known);
    nearest(name, known.chain(roles.iter().map(String::as_str))).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_variable_stands_twice_and_every_name_follows_from_its_key() {
        let old = ["LOGLEVEL", "LOGFORMAT", "LOG_DATEFMT"];
        let mut seen = std::collections::BTreeSet::new();
        for (name, key, _) in VARIABLES {
            assert!(seen.insert(name), "{name} stands twice");
            let usual = key
                .replace("authentication.", "")
                .replace("bin_name.", "bin_")
                .replace("trunkline.", "")
                .replace('.', "_")
                .to_uppercase();
            assert!(*name == usual || old.contains(name), "{name} for {key}");
        }
    }
}
