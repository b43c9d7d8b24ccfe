//! Copies of the files of settings in the data directory, as Patroni keeps them: where those lie outside of it, or are
//! links, a base backup leaves them behind, and what somebody removed comes back with the next start.

use std::path::PathBuf;

use super::PostgresError;
use super::config::PostgresConfig;
use super::files::{read_text, write_file};
use super::settings::{self, BASE_CONF};

/// Every file with its copy. What the operator keeps elsewhere has none.
fn pairs(config: &PostgresConfig) -> Vec<(PathBuf, PathBuf)> {
    let mut names = vec!["postgresql.conf"];
    if config.custom_conf.is_none() {
        names.push(BASE_CONF);
    }
    for (name, parameter) in [("pg_hba.conf", "hba_file"), ("pg_ident.conf", "ident_file")] {
        if settings::is_in_its_place(config, parameter) {
            names.push(name);
        }
    }
    let pair = |name: &str| {
        let copy = config.data_dir.join(format!("{name}.backup"));
        (config.config_dir().join(name), copy)
    };
    names.into_iter().map(pair).collect()
}

/// Brings back what is gone. A `postgresql.conf` that nobody generated is this machine's own original: it becomes
/// the included one, whatever came with the data.
pub(super) fn restore(config: &PostgresConfig) -> Result<(), PostgresError> {
    let conf = read_text(&config.config_dir().join("postgresql.conf"))?;
    let has_original = !conf.is_empty() && !settings::is_generated(&conf);
    for (file, copy) in pairs(config) {
        let is_made_of_the_original = has_original && file.ends_with(BASE_CONF);
        if !file.exists() && copy.exists() && !is_made_of_the_original {
            tracing::warn!(file = %file.display(), "gone, and written again from its copy");
            write_file(&file, &read_text(&copy)?)?;
        }
    }
    Ok(())
}

/// Keeps a copy of what is there.
pub(super) fn keep(config: &PostgresConfig) -> Result<(), PostgresError> {
    for (file, copy) in pairs(config) {
        if !file.exists() {
            continue;
        }
        let text = read_text(&file)?;
        if read_text(&copy)? != text {
            write_file(&copy, &text)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::settings::tests::config;

    #[test]
    fn what_lies_outside_of_the_data_directory_comes_back_from_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (data_dir, config_dir) = (dir.path().join("data"), dir.path().join("etc"));
        std::fs::create_dir_all(&data_dir).unwrap();
        std::fs::create_dir_all(&config_dir).unwrap();
        let mut config = PostgresConfig {
            data_dir: data_dir.clone(),
            config_dir: Some(config_dir.clone()),
            ..config()
        };
        let files = ["postgresql.conf", BASE_CONF, "pg_hba.conf"];
        for name in files {
            std::fs::write(config_dir.join(name), name).unwrap();
        }
        keep(&config).unwrap();
        for name in files {
            std::fs::remove_file(config_dir.join(name)).unwrap();
        }
        std::fs::write(config_dir.join("postgresql.conf"), "this machine's own").unwrap();
        restore(&config).unwrap();
        assert!(!config_dir.join(BASE_CONF).exists());
        let newer = format!("{}newer", settings::HEADER);
        std::fs::write(config_dir.join("postgresql.conf"), &newer).unwrap();
        restore(&config).unwrap();
        let text = |name: &str| std::fs::read_to_string(config_dir.join(name)).unwrap();
        assert_eq!(text("postgresql.conf"), newer);
        assert_eq!(text(BASE_CONF), BASE_CONF);
        assert_eq!(text("pg_hba.conf"), "pg_hba.conf");
        assert!(!config_dir.join("pg_ident.conf").exists());

        // Named elsewhere, it is the operator's.
        let elsewhere = ("hba_file".to_owned(), "/etc/hba.conf".to_owned());
        config.parameters.extend([elsewhere]);
        std::fs::remove_file(config_dir.join("pg_hba.conf")).unwrap();
        restore(&config).unwrap();
        assert!(!config_dir.join("pg_hba.conf").exists());
    }
}
