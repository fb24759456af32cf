//! A small disk of its own for each member: a file system in a file, which can be filled and hung.
//!
//! The one rule: whoever ends a lab first lets its disks go on and unmounts them, so that nothing of them outlives it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use proto::MemberName;
use store::clock;

use super::network::run;
use super::{Lab, Struck};

/// What fills a disk.
const BALLAST: &str = "ballast";

/// How long PostgreSQL is asked for another segment of WAL: those that it has in store are used up first.
const BITE_BOUND: Duration = Duration::from_secs(20);

/// Makes a file system of this size in a file, and mounts it at `place`.
pub fn make(image: &Path, place: &Path, megabytes: u32) -> anyhow::Result<()> {
    let file = File::create(image).with_context(|| format!("make {}", image.display()))?;
    // Without content: it takes of the machine's disk what is written.
    file.set_len(u64::from(megabytes) << 20).context("size the member's disk")?;
    let words = ["-q", "-F", "-m", "0", "-e", "remount-ro", "-E", "lazy_itable_init=1,nodiscard"];
    run(Command::new("mkfs.ext4").args(words).arg(image), "")?;
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(place), "")
}

/// Lets all disks below `root` go on, and unmounts them. Their processes have ended before, or end once they go on.
pub fn unmount_all(root: &Path) -> anyhow::Result<()> {
    for place in mounted(root) {
        // Refused where it does not hang.
        let _ = run(Command::new("fsfreeze").arg("-u").arg(&place), "");
        run(Command::new("umount").arg("-l").arg(&place), "")?;
    }
    Ok(())
}

/// Lets all disks below `root` go on: a process that waits for one cannot be ended.
pub fn unhang_all(root: &Path) {
    for place in mounted(root) {
        let _ = run(Command::new("fsfreeze").arg("-u").arg(&place), "");
    }
}

fn mounted(root: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    places.filter(|place| place.starts_with(root) && place != root).collect()
}

impl Lab {
    /// Fills the disk of `member`, and makes its PostgreSQL need more of it. Proves that nothing can be written.
    pub async fn fill_disk(&self, member: &MemberName) -> anyhow::Result<Struck> {
        const NEXT: &str = "SELECT pg_logical_emit_message(false, 'lab', ''), pg_switch_wal()";
        let session = self.superuser(member).await?;
        let struck = Struck::now();
        let ballast = File::options()
            .create(true)
            .append(true)
            .open(self.disk_of(member)?.join(BALLAST))
            .context("make the ballast")?;
        let mut at = 0;
        for step in [256 << 20, 16 << 20, 1 << 20, 64 << 10, 4 << 10] {
            while fallocate(&ballast, FallocateFlags::empty(), at, step).is_ok() {
                at += step;
            }
        }
        ensure!(at > 0, "the disk of {member} takes no ballast");
        // Its segments in store go first; then it ends, and the session with it.
        while let Ok(Ok(())) =
            tokio::time::timeout(BITE_BOUND, session.client().batch_execute(NEXT)).await
        {
            ensure!(clock::now() < struck.at + BITE_BOUND, "{member} bears a full disk");
        }
        Ok(struck)
    }

    /// Takes the ballast away, and proves that there is room.
    pub fn make_room(&self, member: &MemberName) -> anyhow::Result<()> {
        let place = self.disk_of(member)?;
        std::fs::remove_file(place.join(BALLAST)).context("remove the ballast")?;
        let disk = nix::sys::statvfs::statvfs(&place).context("look at the disk")?;
        ensure!(disk.blocks_available() > 0, "the disk of {member} is still full");
        Ok(())
    }

    /// Has every write to the disk of `member` wait. The kernel refuses to do it twice, which proves it.
    pub async fn hang_disk(&self, member: &MemberName) -> anyhow::Result<Struck> {
        let place = self.disk_of(member)?;
        let struck = Struck::now();
        let freeze = move || {
            run(Command::new("fsfreeze").arg("-f").arg(&place), "")?;
            let again = run(Command::new("fsfreeze").arg("-f").arg(&place), "");
            ensure!(again.is_err(), "{} does not hang", place.display());
            anyhow::Ok(())
        };
        tokio::task::spawn_blocking(freeze).await??;
        Ok(struck)
    }

    /// Lets the disk of `member` go on.
    pub fn unhang_disk(&self, member: &MemberName) -> anyhow::Result<()> {
        run(Command::new("fsfreeze").arg("-u").arg(self.disk_of(member)?), "")
    }

    pub(super) fn disk_of(&self, member: &MemberName) -> anyhow::Result<PathBuf> {
        let place = self.home.layout.member(member);
        ensure!(
            mounted(&self.home.layout.root).contains(&place),
            "{member} has no disk of its own: start the lab with `disk_mb`"
        );
        Ok(place)
    }
}
