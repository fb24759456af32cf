//! Measures how long writes are away after each fault.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often each fault is tried.
    pub runs: usize,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when the bench is started as root.
    pub postgres_user: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { runs: 5, postgres_bin: None, postgres_user: "postgres".into() }
    }
}

/// Runs the bench; returns the process's exit status.
pub async fn run(_config: Config, _stop: CancellationToken) -> anyhow::Result<u8> {
    anyhow::bail!("the bench is not written yet")
}
