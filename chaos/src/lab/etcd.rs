//! Takes the lab's etcd away, all of it, and gives it back with its data.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::clock;

use super::network::Site;
use super::{Lab, Struck, commands};

/// A killed process is reaped within milliseconds; one that starts again elects a leader within two seconds.
const ENDED_BOUND: Duration = Duration::from_secs(5);
const BACK_BOUND: Duration = Duration::from_secs(30);

impl Lab {
    /// Kills every etcd member, as close together as can be.
    pub fn kill_etcd(&self) -> anyhow::Result<Struck> {
        let pids = self.etcd_pids();
        ensure!(!pids.is_empty(), "no etcd runs in this lab");
        let struck = Struck::now();
        for pid in pids {
            kill(Pid::from_raw(pid), Signal::SIGKILL)
                .with_context(|| format!("kill etcd, process {pid}"))?;
        }
        Ok(struck)
    }

    /// Starts every etcd member again on its own data, and waits until they answer together.
    pub async fn start_etcd(&mut self) -> anyhow::Result<()> {
        let deadline = clock::now() + ENDED_BOUND;
        while self.etcd_pids().iter().any(|pid| self.home.spawner.ended(*pid).is_none()) {
            ensure!(clock::now() < deadline, "a killed etcd does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.others.retain(|(name, _)| !is_etcd(name));
        for index in (0..self.addresses.etcd.len()).rev() {
            let command = commands::etcd(&self.home.layout, &self.addresses, index)?;
            let pid = self.start_at(&Site::Etcd(index), command)?;
            // First in the list, because it is ended last.
            self.others.insert(0, (format!("etcd{}", index + 1), pid));
        }
        let deadline = clock::now() + BACK_BOUND;
        while self.store.read(self.keys.prefix()).await.is_err() {
            ensure!(clock::now() < deadline, "etcd does not answer after its restart");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn etcd_pids(&self) -> Vec<i32> {
        self.others.iter().filter(|(name, _)| is_etcd(name)).map(|(_, pid)| *pid).collect()
    }
}

fn is_etcd(name: &str) -> bool {
    name.starts_with("etcd")
}
