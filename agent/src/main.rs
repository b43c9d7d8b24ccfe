//! Placeholder while the workspace is laid out.

use std::process::ExitCode;

fn main() -> ExitCode {
    trunkline_agent::fence::main_if_fence().unwrap_or(ExitCode::SUCCESS)
}
