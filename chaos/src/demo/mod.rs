//! The demo: a cluster under load loses a part, and is judged by what its clients were told.
//!
//! The one rule: status 0 only if nothing was lost, never two primaries acknowledged, and redundancy came back.

mod follow;
mod report;
mod run;
mod timeline;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio_util::sync::CancellationToken;

pub use follow::rejoin_word;
pub use report::{RecoveredBy, Report};
pub use run::play;
pub use timeline::Timeline;

use crate::fault::Fault;
use crate::lab::{cleanup, kept};
use crate::until_stopped;

/// What the demo shows.
#[derive(Debug, Clone)]
pub struct Config {
    pub fault: Fault,
    pub members: usize,
    pub etcd_members: usize,
    /// Print one JSON document to stdout and nothing else; the timeline goes to stderr.
    pub json: bool,
    /// Leave the cluster running, and print how to use and how to stop it.
    pub keep: bool,
    /// How long a killed member stays down after writes are back.
    pub down_for: Duration,
    pub lease_ttl: Duration,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when the demo is started as root.
    pub postgres_user: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fault: Fault::Member,
            members: 3,
            etcd_members: 1,
            json: false,
            keep: false,
            down_for: Duration::from_secs(3),
            lease_ttl: Duration::from_secs(4),
            postgres_bin: None,
            postgres_user: "postgres".into(),
        }
    }
}

impl Config {
    /// Checks what the types leave open.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((2..=7).contains(&self.members), "--members is {}: use 2 to 7", self.members);
        ensure!(
            !self.fault.strikes_again() || self.members >= 3,
            "--fault crash-twice needs --members 3 or more: with two the second primary has nobody to hand over to"
        );
        ensure!(
            !self.fault.needs_root() || nix::unistd::geteuid().is_root(),
            "--fault {} needs networks or disks of the members' own, which only root can make: run it as root",
            self.fault
        );
        ensure!(
            [1, 3, 5].contains(&self.etcd_members),
            "--etcd-members is {}: use 1, 3 or 5, an even number bears no more losses",
            self.etcd_members
        );
        ensure!(
            self.down_for <= Duration::from_secs(600),
            "--down-for is longer than 10 minutes: use less"
        );
        Ok(())
    }
}

/// Runs the demo; returns the process's exit status. When `stop` is cancelled everything is ended and removed.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<u8> {
    config.check()?;
    let pgdeputy = std::env::current_exe().context("find the pgdeputy program")?;
    until_stopped(stop, run::run(&config, pgdeputy)).await
}

/// Ends a cluster that `--keep` left running (`pgdeputy demo --stop DIR`).
pub fn stop(directory: &Path) -> anyhow::Result<u8> {
    kept::down(directory)
}

/// Ends a lab whose process is gone (hidden `pgdeputy demo --guard`): reads the lab's directory from stdin.
pub fn guard() -> anyhow::Result<u8> {
    cleanup::guard().map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shown_is_refused_with_a_remedy() {
        assert!(Config::default().check().is_ok());
        let refused = |config: Config| config.check().unwrap_err().to_string();
        assert!(refused(Config { members: 1, ..Config::default() }).contains("use 2 to 7"));
        assert!(refused(Config { etcd_members: 2, ..Config::default() }).contains("use 1, 3 or 5"));
        let twice = Config { fault: Fault::CrashTwice, members: 2, ..Config::default() };
        assert!(refused(twice).contains("needs --members 3"));
    }
}
