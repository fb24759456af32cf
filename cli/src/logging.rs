//! Log lines go to stderr, as text or JSON; stdout belongs to answers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::args::{Common, LogFormat};
use crate::failure::Failure;

/// Starts logging. A role tells what changes; a command that answers and ends tells only what is wrong.
pub fn init(common: &Common, is_role: bool) -> Result<(), Failure> {
    let rust_log = std::env::var("RUST_LOG").ok().filter(|v| !v.is_empty());
    let (name, asked) = match (&common.log_level, rust_log) {
        (Some(level), _) => ("--log-level", level.clone()),
        (None, Some(filter)) => ("RUST_LOG", filter),
        (None, None) => ("the default level", if is_role { "info" } else { "warn" }.to_owned()),
    };
    let filter = EnvFilter::builder().parse(&asked);
    let filter = filter.map_err(|e| {
        Failure::usage(format!(
            "{name} {asked:?} is no log filter such as info or info,keeper=debug: {e}"
        ))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match common.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
