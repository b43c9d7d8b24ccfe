//! The command line of `trunkline-agent`.

use std::path::PathBuf;

use clap::Parser;

/// Keeps one PostgreSQL in its right role.
#[derive(Clone, Debug, Parser)]
#[command(name = "trunkline-agent", version, about)]
pub struct Arguments {
    /// A file, or a folder of *.yml files, in Patroni's schema. Without it the environment is enough.
    #[arg(value_name = "CONFIG", env = "TRUNKLINE_CONFIG_FILE")]
    pub config: Option<PathBuf>,

    /// Check the configuration, print what is wrong with it, and start nothing.
    #[arg(long)]
    pub validate_config: bool,

    /// Print a configuration to begin with.
    #[arg(long)]
    pub generate_sample_config: bool,
}
