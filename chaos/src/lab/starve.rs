//! Members without a processor or without memory, as beside a greedy neighbour: by control groups of the kernel, of either
//! version.
//!
//! The one rule: the kernel itself has to say that it held a process back, and nobody is left in a group when it is undone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::MemberName;
use store::clock;

use super::{Lab, Layout, Struck};

/// Where control groups are, in both versions.
const GROUPS: &str = "/sys/fs/cgroup";

/// Of each hundred milliseconds a member has this many of one processor, in microseconds: less than it needs to keep up.
const PERIOD_US: u64 = 100_000;
const QUOTA_US: u64 = 3_000;

/// A process that wants more than its share is held back within a tenth of a second.
const BITE_BOUND: Duration = Duration::from_secs(10);

/// What a member may take of memory beyond what it has, in bytes, and a query that needs several times as much.
const MEMORY: u64 = 64 << 20;
const GREEDY: &str = "SET work_mem = '1GB';
     SELECT count(*) FROM (SELECT n FROM generate_series(1, 20000000) n ORDER BY -n OFFSET 0) x";

/// A group of one lab, by what it controls.
struct Group(PathBuf);

impl Group {
    /// Makes the group of the member for `controller`, in whichever version of control groups has it.
    fn make(layout: &Layout, controller: &str, member: &MemberName) -> anyhow::Result<Self> {
        let group = Self::of(layout, controller, member)?;
        if !is_old(controller) {
            let all = Path::new(GROUPS).join("cgroup.subtree_control");
            fs::write(&all, format!("+{controller}")).context("have control groups control it")?;
        }
        if !group.0.exists() {
            fs::create_dir(&group.0).with_context(|| format!("make {}", group.0.display()))?;
        }
        Ok(group)
    }

    fn of(layout: &Layout, controller: &str, member: &MemberName) -> anyhow::Result<Self> {
        let lab = layout.root.file_name().context("a lab's directory has a name")?;
        let name = format!("{}-{member}", lab.to_string_lossy());
        Ok(Self(parent(controller).join(name)))
    }

    fn set(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let file = self.0.join(file);
        fs::write(&file, value).with_context(|| format!("write {value} to {}", file.display()))
    }

    /// Returns the number beside `word` in one of the group's files.
    fn counts(&self, file: &str, word: &str) -> anyhow::Result<u64> {
        let file = self.0.join(file);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        line.and_then(|n| n.trim().parse().ok()).with_context(|| format!("{text:?} has no {word}"))
    }

    /// Takes in the member, and what it forks meanwhile.
    fn take_in(&self, lab: &Lab, member: &MemberName) -> anyhow::Result<()> {
        for _ in 0..3 {
            for process in lab.processes_of(member) {
                // It may have ended since it was looked up.
                let _ = fs::write(self.0.join("cgroup.procs"), process.pid.to_string());
            }
        }
        let inside = fs::read_to_string(self.0.join("cgroup.procs"))?;
        ensure!(!inside.is_empty(), "no process of {member} is in {}", self.0.display());
        Ok(())
    }

    /// Lets all go, and removes the group.
    async fn remove(&self) -> anyhow::Result<()> {
        let deadline = clock::now() + BITE_BOUND;
        while fs::remove_dir(&self.0).is_err() {
            let inside = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in inside.lines() {
                let all = self.0.with_file_name("cgroup.procs");
                let _ = fs::write(all, pid);
            }
            ensure!(clock::now() < deadline, "{} is not left by {inside:?}", self.0.display());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

fn is_old(controller: &str) -> bool {
    Path::new(GROUPS).join(controller).exists()
}

fn parent(controller: &str) -> PathBuf {
    let all = PathBuf::from(GROUPS);
    if is_old(controller) { all.join(controller) } else { all }
}

/// Removes what groups a lab has left, by its directory. Its processes have ended before.
pub fn remove_of(root: &Path) {
    let Some(lab) = root.file_name().and_then(|name| name.to_str()) else { return };
    for controller in ["cpu", "memory"] {
        let groups = fs::read_dir(parent(controller)).into_iter().flatten().flatten();
        for group in groups.filter(|g| g.file_name().to_string_lossy().starts_with(lab)) {
            let _ = fs::remove_dir(group.path());
        }
    }
}

impl Lab {
    /// Leaves `member` hardly any processor, and waits until the kernel says that it held it back.
    pub async fn starve(&self, member: &MemberName) -> anyhow::Result<Struck> {
        let group = Group::make(&self.home.layout, "cpu", member)?;
        if is_old("cpu") {
            group.set("cpu.cfs_period_us", &PERIOD_US.to_string())?;
            group.set("cpu.cfs_quota_us", &QUOTA_US.to_string())?;
        } else {
            group.set("cpu.max", &format!("{QUOTA_US} {PERIOD_US}"))?;
        }
        let struck = Struck::now();
        group.take_in(self, member)?;
        while group.counts("cpu.stat", "nr_throttled")? == 0 {
            ensure!(clock::now() < struck.at + BITE_BOUND, "{member} is not held back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(struck)
    }

    /// Limits the memory of `member` and has a query need more, and proves that the kernel killed for it.
    pub async fn exhaust_memory(&self, member: &MemberName) -> anyhow::Result<Struck> {
        let group = Group::make(&self.home.layout, "memory", member)?;
        let (limit, events) = match is_old("memory") {
            true => ("memory.limit_in_bytes", "memory.oom_control"),
            false => ("memory.max", "memory.events"),
        };
        group.set(limit, &MEMORY.to_string())?;
        group.take_in(self, member)?;
        let session = self.superuser(member).await?;
        let struck = Struck::now();
        let asked = session.client().batch_execute(GREEDY);
        let ended = tokio::time::timeout(BITE_BOUND, asked).await;
        let ended = ended.with_context(|| format!("{member} bears it"))?;
        ensure!(ended.is_err(), "a query took what {member} does not have");
        let killed = group.counts(events, "oom_kill")?;
        ensure!(killed > 0, "the kernel has killed nobody: {ended:?}");
        Ok(struck)
    }

    /// Lets `member` have what it wants again; that its groups are gone proves it.
    pub async fn feed(&self, member: &MemberName) -> anyhow::Result<()> {
        for controller in ["cpu", "memory"] {
            let group = Group::of(&self.home.layout, controller, member)?;
            if group.0.exists() {
                group.remove().await?;
            }
        }
        Ok(())
    }
}
