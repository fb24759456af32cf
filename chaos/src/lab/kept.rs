//! A lab that is left running for a person, and how it is ended (`pgdeputy lab up`, `pgdeputy lab down`).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use tokio_util::sync::CancellationToken;

use super::network::Placement;
use super::{CLUSTER, Lab, LabConfig, Lifetime, cleanup};
use crate::{FORM_BOUND, INTERRUPTED};

/// What is started.
#[derive(Debug, Clone)]
pub struct Config {
    pub members: usize,
    pub etcd_members: usize,
    pub pgbouncers: usize,
    /// Whether each host has a network of its own.
    pub namespaces: bool,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when this is root.
    pub postgres_user: String,
}

impl Config {
    /// Checks what the types leave open.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=7).contains(&self.members), "--members is {}: use 1 to 7", self.members);
        ensure!(self.pgbouncers <= 4, "--pgbouncers is {}: use 0 to 4", self.pgbouncers);
        ensure!(
            [1, 3, 5].contains(&self.etcd_members),
            "--etcd-members is {}: use 1, 3 or 5, an even number bears no more losses",
            self.etcd_members
        );
        ensure!(
            !self.namespaces || nix::unistd::geteuid().is_root(),
            "--netns needs network namespaces, which only root can make: run it as root"
        );
        Ok(())
    }
}

/// Starts a lab, waits until it is redundant, says how it is used, and leaves it running.
pub async fn up(config: Config, stop: CancellationToken) -> anyhow::Result<u8> {
    let pgdeputy = std::env::current_exe().context("find the pgdeputy program")?;
    let lab = LabConfig {
        members: config.members,
        etcd_members: config.etcd_members,
        pgbouncers: config.pgbouncers,
        placement: if config.namespaces { Placement::Namespaces } else { Placement::Loopback },
        keepers_restart: true,
        postgres_bin: config.postgres_bin,
        postgres_user: config.postgres_user,
        lifetime: Lifetime::MayBeKept,
        narrate: Arc::new(|line| eprintln!("{line}")),
        ..LabConfig::new(pgdeputy.clone())
    };
    let started = async {
        let lab = Lab::start(lab).await?;
        let formed = lab.wait_redundant(FORM_BOUND).await.context("form the cluster");
        formed.inspect_err(|_| eprintln!("{}", lab.log_tails()))?;
        lab.prepare_database().await?;
        anyhow::Ok(lab)
    };
    let lab = tokio::select! {
        () = stop.cancelled() => return Ok(INTERRUPTED),
        lab = started => lab?,
    };
    let usage = lab.usage(&pgdeputy);
    let directory = lab.keep()?;
    println!("{usage}  logs: {}/log", directory.display());
    println!("stop it with\n  {} lab down {}", pgdeputy.display(), directory.display());
    Ok(0)
}

/// Ends a lab that was left running, and removes it.
pub fn down(directory: &Path) -> anyhow::Result<u8> {
    let ended = cleanup::end_lab(directory)?;
    println!("ended {} processes and removed {}", ended.len(), directory.display());
    Ok(0)
}

impl Lab {
    /// Says how a lab that is left running is reached, a line for each way, the last one ended too.
    pub fn usage(&self, program: &Path) -> String {
        let mut text = String::from("\nthe cluster is left running\n");
        for (what, dsn) in self.connection_strings() {
            let _ = writeln!(text, "  {what:<20} psql '{dsn}'");
        }
        text.push_str("try\n");
        let (program, etcd) = (program.display(), self.etcd_urls().join(","));
        for command in ["status", "explain", "history"] {
            let _ = writeln!(text, "  {program} {command} --cluster {CLUSTER} --etcd {etcd}");
        }
        text
    }
}
