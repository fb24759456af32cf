//! Which labs on this machine have which network: a number for each, held by a lock for as long as the lab or its
//! guard lives.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::lab::cleanup;
use crate::lab::config::Layout;

/// Only root makes networks, so only root need write here.
const DIRECTORY: &str = "/run/pgdeputy-lab";

/// The file of a lab's directory that shows that it is meant to outlive its process.
pub const KEPT: &str = "kept";

/// A number that no other living lab has. The lock is open in the lab's process and in its guard: it is given back when
/// both are gone.
pub struct Claim {
    pub number: u8,
    lock: Flock<File>,
}

impl Claim {
    /// Claims a number for the lab at `root`, and ends what dead labs have left. Refuses to when this is not root.
    pub fn take(root: &Path) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "members in networks of their own need root: start this as root"
        );
        std::fs::create_dir_all(DIRECTORY).with_context(|| format!("make {DIRECTORY}"))?;
        std::fs::set_permissions(DIRECTORY, Permissions::from_mode(0o755))?;
        let mut free = None;
        for number in 0..=u8::MAX {
            // Beyond the first free one only those that were ever used can have left something.
            if free.is_some() && !file(number).exists() {
                break;
            }
            let Some(claim) = Self::lock(number)? else { continue };
            if claim.is_free()? && free.is_none() {
                free = Some(claim);
            }
        }
        let Some(mut claim) = free else {
            bail!("256 labs have networks on this machine: end one")
        };
        let root = root.to_str().context("the lab's directory is no text")?;
        claim.lock.set_len(0)?;
        claim.lock.rewind()?;
        claim.lock.write_all(root.as_bytes()).context("note whose network it is")?;
        Ok(claim)
    }

    /// The lock as the guard is to inherit it.
    pub fn descriptor(&self) -> RawFd {
        self.lock.as_raw_fd()
    }

    fn lock(number: u8) -> anyhow::Result<Option<Self>> {
        let path = file(number);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        Ok(locked.ok().map(|lock| Self { number, lock }))
    }

    /// Returns whether this number may be used, after what a dead lab left of it is gone. Nobody holds the lock: the lab
    /// ended, was left running on purpose, or died together with its guard.
    fn is_free(&self) -> anyhow::Result<bool> {
        let mut owner = String::new();
        (&*self.lock).read_to_string(&mut owner).context("read whose network it was")?;
        let owner = PathBuf::from(owner);
        if !owner.as_os_str().is_empty() && Layout::marker(&owner).is_file() {
            if owner.join(KEPT).exists() {
                return Ok(false);
            }
            tracing::warn!(lab = %owner.display(), "end what a dead lab left");
            if let Err(error) = cleanup::end_lab(&owner) {
                tracing::warn!(error = format!("{error:#}"), "a dead lab is left as it is");
                return Ok(false);
            }
        }
        super::remove(self.number)?;
        Ok(true)
    }
}

fn file(number: u8) -> PathBuf {
    Path::new(DIRECTORY).join(number.to_string())
}
