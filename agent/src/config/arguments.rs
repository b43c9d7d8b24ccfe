//! The command line of `trunkline-agent`.

use std::path::PathBuf;

use clap::Parser;

/// Keeps one PostgreSQL in its right role.
#[derive(Clone, Debug, Parser)]
#[command(name = "trunkline-agent", version, about)]
pub struct Arguments {
    /// A file, or a folder of *.yml files, in Patroni's schema. Without it the environment is enough. With
    /// --generate-config and --generate-sample-config the file to write; standard output if absent.
    #[arg(value_name = "CONFIG", env = "TRUNKLINE_CONFIG_FILE")]
    pub config: Option<PathBuf>,

    /// Check the configuration, and the ports, folders, programs and parameters that it names; tell every mistake,
    /// start nothing, and end with 1 if there is one.
    #[arg(long, group = "instead")]
    pub validate_config: bool,

    /// Do not take it for a mistake that a port to listen on is in use.
    #[arg(short = 'i', long, requires = "validate_config")]
    pub ignore_listen_port: bool,

    /// Print the configuration with the environment laid over it, secrets masked.
    #[arg(short = 'p', long, requires = "validate_config")]
    pub print: bool,

    /// Read the configuration and its certificates as a start would, and do nothing else: what a running agent asks
    /// of the program that is to take over.
    #[arg(long, hide = true, group = "instead")]
    pub check_start: bool,

    /// Write a configuration to begin with.
    #[arg(long, group = "instead")]
    pub generate_sample_config: bool,

    /// Write a configuration for an instance that runs, by what it says of itself.
    #[arg(long, group = "instead")]
    pub generate_config: bool,

    /// Where that instance is, as libpq's connection string or URL; a superuser is needed. PGHOST and its kind fill
    /// in what is missing.
    #[arg(long, requires = "generate_config")]
    pub dsn: Option<String>,
}
