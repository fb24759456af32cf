//! Starts, kills and starts again the members of a lab.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::{MemberName, Moment, WallTime};
use store::clock;

use super::cleanup::{self, Found};
use super::commands::{self, MemberAddress};
use super::disk;
use super::freeze::is_dead;
use super::network::{Site, host};
use super::skew::skewed;
use super::{Lab, Member};

/// Killed processes are gone within some 20 ms, on a busy machine within 0.2 s.
const GONE_BOUND: Duration = Duration::from_secs(10);

/// How long a killed keeper is given to be started again by others.
const KEEPER_BACK: Duration = Duration::from_secs(1);

/// When something was killed: taken after its processes were looked up, just before the first signal.
#[derive(Debug, Clone, Copy)]
pub struct Struck {
    pub at: Moment,
    /// The same for comparison with records.
    pub wall: WallTime,
}

impl Struck {
    pub(crate) fn now() -> Self {
        Self { at: clock::now(), wall: clock::wall() }
    }
}

impl Lab {
    /// Adds a member with an empty directory and starts its keeper.
    pub fn add_member(&mut self, name: MemberName) -> anyhow::Result<()> {
        ensure!(!self.members.contains_key(&name), "the lab has a member {name} already");
        let host = host(self.network.as_mut(), &Site::Member(name.clone()))?;
        let (postgres, http) = (self.ports.next()?, self.ports.next()?);
        let address = MemberAddress { host, postgres, http };
        self.make_home_of(&name)?;
        self.members.insert(name.clone(), Member { address, keeper: None, faked: None });
        self.start_member(&name)
    }

    fn make_home_of(&self, name: &MemberName) -> anyhow::Result<()> {
        let directory = self.home.layout.member(name);
        self.home.make_private(&directory)?;
        let Some(megabytes) = self.config.disk_mb else { return Ok(()) };
        disk::make(&self.home.layout.disk(name), &directory, megabytes)?;
        // What was made private lies under the disk now.
        self.home.close(&directory)
    }

    /// Starts a member's keeper, which starts the rest.
    pub fn start_member(&mut self, name: &MemberName) -> anyhow::Result<()> {
        let at = self.address(name)?;
        let mut command =
            commands::keeper(&self.config, &self.home.layout, &self.addresses, (name, at))?;
        if let Some(library) = self.members.get(name).and_then(|member| member.faked.as_ref()) {
            skewed(&mut command, library);
        }
        let pid = self.start_at(&Site::Member(name.clone()), command)?;
        let member = self.members.get_mut(name).context("its address was just found")?;
        member.keeper = Some(pid);
        Ok(())
    }

    /// Starts `program` as a keeper that takes the member over from the one that runs.
    pub fn upgrade_member(
        &mut self,
        name: &MemberName,
        program: &std::path::Path,
    ) -> anyhow::Result<()> {
        self.config.pgdeputy = program.to_owned();
        let at = self.address(name)?;
        let mut command =
            commands::keeper(&self.config, &self.home.layout, &self.addresses, (name, at))?;
        command.arg("--take-over");
        let pid = self.start_at(&Site::Member(name.clone()), command)?;
        self.members.get_mut(name).context("its address was just found")?.keeper = Some(pid);
        Ok(())
    }

    /// Returns how the member's keeper ended, if it did by itself.
    pub fn keeper_ended(&self, name: &MemberName) -> Option<String> {
        self.members.get(name)?.keeper.and_then(|pid| self.home.spawner.ended(pid))
    }

    /// Ends what still runs of a member that was removed from the cluster, and counts it no more.
    pub async fn retire(&mut self, name: &MemberName) -> anyhow::Result<()> {
        self.kill_member(name)?;
        self.member_gone(name).await?;
        self.members.remove(name);
        Ok(())
    }

    /// Kills the postmaster of `name`, and nothing else.
    pub fn kill_postgres(&self, name: &MemberName) -> anyhow::Result<Struck> {
        let postmaster = self.postmaster(name)?;
        self.adopt_orphans(&self.processes_of(name));
        let struck = Struck::now();
        kill(Pid::from_raw(postmaster), Signal::SIGKILL)
            .with_context(|| format!("kill the postmaster of {name}, process {postmaster}"))?;
        Ok(struck)
    }

    /// Signals the keeper of `name`, and neither its fencer nor its PostgreSQL: SIGKILL, SIGSTOP, SIGCONT, or
    /// SIGUSR2, which it leaves PostgreSQL running at.
    pub fn signal_keeper(&mut self, name: &MemberName, signal: Signal) -> anyhow::Result<Struck> {
        let member = self.members.get_mut(name).with_context(|| format!("no member {name}"))?;
        let pid = member.keeper.with_context(|| format!("the keeper of {name} does not run"))?;
        if matches!(signal, Signal::SIGKILL | Signal::SIGUSR2) {
            member.keeper = None;
        }
        let struck = Struck::now();
        kill(Pid::from_raw(pid), signal).with_context(|| format!("signal the keeper of {name}"))?;
        Ok(struck)
    }

    /// Kills the keeper of `name`, and proves that it is gone.
    pub async fn kill_keeper(&mut self, name: &MemberName) -> anyhow::Result<Struck> {
        let pid = self.members.get(name).and_then(|member| member.keeper);
        let pid = pid.with_context(|| format!("the keeper of {name} does not run"))?;
        let struck = self.signal_keeper(name, Signal::SIGKILL)?;
        // It may be its fencer's child, and only reaped there.
        while !is_dead(pid) {
            ensure!(clock::now() < struck.at + GONE_BOUND, "the keeper of {name} does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(struck)
    }

    /// Starts the keeper of `name` where nobody has: its fencer does, or a service manager, whose part the lab has.
    pub async fn keeper_back(&mut self, name: &MemberName) -> anyhow::Result<()> {
        let known = self.members.get(name).and_then(|member| member.keeper);
        if known.is_some_and(|pid| !is_dead(pid)) {
            return Ok(());
        }
        let deadline = clock::now() + KEEPER_BACK;
        while clock::now() < deadline {
            if let Some(pid) = self.keeper_process(name) {
                let member = self.members.get_mut(name).with_context(|| format!("no {name}"))?;
                member.keeper = Some(pid);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.start_member(name)
    }

    /// Returns the process that runs as keeper of `name`, whoever has started it.
    pub fn keeper_process(&self, name: &MemberName) -> Option<i32> {
        let is_keeper = |pid: i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|b| *b == 0).nth(1) == Some(b"keeper")
        };
        self.processes_of(name).into_iter().map(|p| p.pid).find(|pid| is_keeper(*pid))
    }

    /// Kills keeper, fencer and all PostgreSQL processes of `name` as close together as can be.
    pub fn kill_member(&mut self, name: &MemberName) -> anyhow::Result<Struck> {
        let found = self.processes_of(name);
        ensure!(!found.is_empty(), "nothing of member {name} runs");
        // The keeper first: it must not see the others die.
        let (servers, deputies): (Vec<_>, Vec<_>) = found.iter().partition(|p| p.is_postgres());
        let struck = Struck::now();
        for process in deputies.iter().chain(&servers) {
            // It may have ended since it was looked up.
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        self.adopt_orphans(&found);
        if let Some(member) = self.members.get_mut(name) {
            member.keeper = None;
        }
        Ok(struck)
    }

    /// Waits until no process of `name` is left, and kills what PostgreSQL forked in the last moment.
    pub async fn member_gone(&self, name: &MemberName) -> anyhow::Result<()> {
        let deadline = clock::now() + GONE_BOUND;
        loop {
            let left = self.processes_of(name);
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                clock::now() < deadline,
                "processes of {name} do not end though killed: {left:?}"
            );
            for process in &left {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            self.adopt_orphans(&left);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the living processes of a member.
    pub fn processes_of(&self, name: &MemberName) -> Vec<Found> {
        cleanup::processes(&self.home.layout.member(name))
    }

    /// Returns the process id of the member's postmaster, if one lives there.
    pub fn postmaster(&self, name: &MemberName) -> anyhow::Result<i32> {
        let data = self.home.layout.data(name);
        let file = data.join("postmaster.pid");
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
        let pid: i32 = pid.with_context(|| format!("{} names no process", file.display()))?;
        // The file outlives a killed postmaster, and its number may be somebody else's by now.
        let is_server = self.processes_of(name).iter().any(|p| p.pid == pid && p.is_postgres());
        ensure!(is_server, "no postmaster of {name} runs");
        Ok(pid)
    }

    fn adopt_orphans(&self, found: &[Found]) {
        self.home.spawner.adopt(found.iter().map(|p| p.pid).collect());
    }
}
