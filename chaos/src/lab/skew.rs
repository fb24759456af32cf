//! A member whose keeper has a wall clock that is wrong, by Debian's libfaketime. The clock by which it keeps deadlines is
//! right, as on a host whose time was never set. Its PostgreSQL and its fencer get no environment, and so the right time.
//!
//! The one rule: what the keeper itself has written shows that its clock is wrong, and later that it is right again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::{MemberName, WallTime};
use store::clock;

use super::{Lab, Struck};

/// Below any other difference of clocks, and beyond what any time-out could hide.
const SKEW: &str = "-7m";
const SKEWED_MS: u64 = 5 * 60 * 1000;

/// A way back and a switchover take seconds; this is for a machine under load.
const DONE: Duration = Duration::from_secs(60);

impl Lab {
    /// Kills all of the primary `member`, starts it with a clock that is wrong, and once it is back has it serve again by a
    /// switchover. Returns when that was asked for.
    pub async fn skew_clock(&mut self, member: &MemberName) -> anyhow::Result<Struck> {
        let library = library()?;
        self.kill_member(member)?;
        self.member_gone(member).await?;
        self.members.get_mut(member).context("a member that was just killed")?.faked =
            Some(library);
        self.start_member(member)?;
        self.wait_redundant(DONE).await?;
        let off = self.off_by_ms(member).await?;
        ensure!(off >= SKEWED_MS, "the clock of {member} is wrong by {off} ms alone");
        let (struck, asked) = self.ask_for_switchover(Some(member)).await?;
        let answered = self.answer(&asked, DONE).await?;
        let serves = self.primary().await?;
        ensure!(serves == *member, "{serves} serves, and not {member}: {answered:?}");
        Ok(struck)
    }

    /// Starts `member` again with a clock that is right; it need not run.
    pub async fn set_clock_right(&mut self, member: &MemberName) -> anyhow::Result<()> {
        self.kill_member(member)?;
        self.member_gone(member).await?;
        self.members.get_mut(member).context("a member that was just killed")?.faked = None;
        self.start_member(member)?;
        self.wait_redundant(DONE).await?;
        let off = self.off_by_ms(member).await?;
        ensure!(off < SKEWED_MS, "the clock of {member} is still wrong by {off} ms");
        Ok(())
    }

    /// How far the time at which the keeper of `member` says that its way back began is from now, in milliseconds.
    async fn off_by_ms(&self, member: &MemberName) -> anyhow::Result<u64> {
        let cluster = self.cluster().await?;
        let report = cluster.reports.get(member).context("it does not report")?;
        let rejoin = report.rejoin.as_ref().context("it says nothing of its way back")?;
        let WallTime(now) = clock::wall();
        Ok(now.abs_diff(rejoin.started.0))
    }
}

/// Has the clock of `command` be wrong.
pub fn skewed(command: &mut Command, library: &Path) {
    command.env("LD_PRELOAD", library).env("FAKETIME", SKEW);
    // The clocks that only go on are left alone.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Returns where the library is: in Debian's directories for any architecture, or in that of RHEL.
fn library() -> anyhow::Result<PathBuf> {
    let debian = std::fs::read_dir("/usr/lib").context("read /usr/lib")?;
    let directories = debian.flatten().map(|entry| entry.path()).chain(["/usr/lib64".into()]);
    let mut places = directories.map(|dir| dir.join("faketime/libfaketimeMT.so.1"));
    let place = places.find(|place| place.exists());
    place.context("libfaketime is not installed: run `make deps`")
}
