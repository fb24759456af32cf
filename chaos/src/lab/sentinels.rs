//! The lab's sentinels: which one leads, and what is done to them.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::document::decode;
use proto::{LeaderKey, MemberName};
use store::clock;

use super::network::Site;
use super::{Lab, Struck, commands};

/// A killed process is reaped within milliseconds.
const ENDED_BOUND: Duration = Duration::from_secs(5);

/// One running sentinel of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentinel {
    /// Its name in the lab, which is that of its log.
    pub name: String,
    pub pid: i32,
}

impl Lab {
    /// Returns the sentinels that were started and not killed, frozen or not.
    pub fn sentinels(&self) -> Vec<Sentinel> {
        let named = self.others.iter().filter(|(name, _)| is_sentinel(name));
        named.map(|(name, pid)| Sentinel { name: name.clone(), pid: *pid }).collect()
    }

    /// Returns the sentinel that leads by the key in etcd, if one does. A frozen one leads until its lease has lapsed.
    pub async fn leading_sentinel(&self) -> anyhow::Result<Option<Sentinel>> {
        let key = self.keys.leader();
        let snapshot = self.store.read(&key).await?;
        let Some(entry) = snapshot.entries.get(&key) else { return Ok(None) };
        let leader: LeaderKey = decode(&entry.value)?;
        let all = self.sentinels().into_iter();
        Ok(all.into_iter().find(|s| leader.id.ends_with(&format!("-{}", s.pid))))
    }

    /// Waits until a sentinel leads that is none of `others`.
    pub async fn led_by_another(
        &self,
        others: &[Sentinel],
        bound: Duration,
    ) -> anyhow::Result<Sentinel> {
        let deadline = clock::now() + bound;
        loop {
            let leader = self.leading_sentinel().await?;
            if let Some(leader) = leader.filter(|leader| !others.contains(leader)) {
                return Ok(leader);
            }
            ensure!(clock::now() < deadline, "no other sentinel leads after {bound:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills this sentinel, and proves that it is gone.
    pub async fn kill_sentinel(&mut self, sentinel: &Sentinel) -> anyhow::Result<Struck> {
        let struck = Struck::now();
        kill(Pid::from_raw(sentinel.pid), Signal::SIGKILL)
            .with_context(|| format!("kill {}", sentinel.name))?;
        self.sentinel_ended(sentinel).await?;
        Ok(struck)
    }

    /// Kills the sentinel that leads and everything of `member`, as close together as can be.
    pub async fn kill_leader_with(&mut self, member: &MemberName) -> anyhow::Result<Struck> {
        let leader = self.leading_sentinel().await?.context("no sentinel leads")?;
        kill(Pid::from_raw(leader.pid), Signal::SIGKILL).context("kill the leading sentinel")?;
        let struck = self.kill_member(member)?;
        self.sentinel_ended(&leader).await?;
        Ok(struck)
    }

    /// Starts every sentinel that does not run. Returns their names.
    pub fn start_sentinels(&mut self) -> anyhow::Result<Vec<String>> {
        let mut started = Vec::new();
        for index in 0..self.config.sentinels {
            let name = format!("sentinel{}", index + 1);
            if self.others.iter().any(|(running, _)| *running == name) {
                continue;
            }
            let command =
                commands::sentinel(&self.config, &self.home.layout, &self.addresses, index)?;
            let pid = self.start_at(&Site::Sentinel(index), command)?;
            self.others.push((name.clone(), pid));
            started.push(name);
        }
        Ok(started)
    }

    async fn sentinel_ended(&mut self, sentinel: &Sentinel) -> anyhow::Result<()> {
        let deadline = clock::now() + ENDED_BOUND;
        while self.home.spawner.ended(sentinel.pid).is_none() {
            ensure!(clock::now() < deadline, "{} does not end though killed", sentinel.name);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.others.retain(|(_, pid)| *pid != sentinel.pid);
        Ok(())
    }
}

fn is_sentinel(name: &str) -> bool {
    name.starts_with("sentinel")
}
