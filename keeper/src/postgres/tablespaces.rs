//! Where a fresh copy puts tablespaces, and how they get into their own places.
//!
//! A tablespace has to lie at the same path on every member, also where old data has it still. So it is copied beside
//! its place, and takes that once the copy has become the data.
//!
//! Rule: whatever step is cut, the links of the data directory lead to a whole tablespace, or `settle` makes them. What
//! was in a place is set aside, and nothing here removes a file of anybody's.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::unistd::{getegid, geteuid};

use super::binaries::RunAs;
use super::initdb::is_absent_or_empty;
use crate::durable::{fsync_dir, parent};

/// A tablespace of a server that is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub name: String,
    pub location: PathBuf,
}

/// A tablespace that is copied to another place than it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub from: PathBuf,
    pub to: PathBuf,
}

/// Returns where the tablespaces go that are not simply copied into their places, for a copy that will become
/// `data_dir`, made by `user`. Refuses, with what a person can do, where one cannot be. Writes nothing.
pub fn mappings(
    data_dir: &Path,
    suffix: &str,
    tablespaces: &[Tablespace],
    user: Option<RunAs>,
) -> anyhow::Result<Vec<Mapping>> {
    let own: Vec<PathBuf> = links(data_dir)?.into_iter().map(|(_, target)| target).collect();
    let mut mappings = Vec::new();
    for Tablespace { name, location } in tablespaces {
        // One within the data directory is copied with that.
        if !location.is_absolute() {
            continue;
        }
        let place = location.display();
        let is_free = is_absent_or_empty(location).with_context(|| format!("look at {place}"))?;
        ensure!(
            is_free || own.contains(location),
            "tablespace {name} lies at {place}, and what is there on this host is not of this member's data: if another \
             server uses it, run this member on another host or move the tablespace's tables away; if nobody needs it, \
             move it away"
        );
        if has_room_beside(location, user)? {
            mappings.push(Mapping { from: location.clone(), to: beside(location, suffix)? });
        } else if !is_free {
            bail!(
                "tablespace {name} lies at {place}, and nothing can be put beside that: it is a mount point, or its \
                 parent directory is not PostgreSQL's to write to. Stop this member's keeper, move what is in {place} \
                 and the data directory away, and start the keeper: it copies into the empty directories"
            );
        }
    }
    Ok(mappings)
}

/// Returns whether PostgreSQL's user can make a directory beside `location` that can take its name.
fn has_room_beside(location: &Path, user: Option<RunAs>) -> anyhow::Result<bool> {
    let Ok(around) = fs::metadata(parent(location)?) else { return Ok(false) };
    let (uid, gid) =
        user.map_or((geteuid().as_raw(), getegid().as_raw()), |user| (user.uid, user.gid));
    let bit = match (around.uid() == uid, around.gid() == gid) {
        (true, _) => 0o200,
        (false, true) => 0o020,
        (false, false) => 0o002,
    };
    let is_mount_point = fs::metadata(location).is_ok_and(|own| own.dev() != around.dev());
    Ok(!is_mount_point && (uid == 0 || around.mode() & bit != 0))
}

/// Gives tablespaces that were copied beside their places those places, and the links of `data_dir` with them. What
/// was there is set aside, and data that a copy has replaced finds it there. Returns the places. To be called while no
/// PostgreSQL runs on `data_dir`; after a cut, again.
pub fn settle(data_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut settled = Vec::new();
    for (link, target) in links(data_dir)? {
        let Some((location, epoch)) = as_copied(&target) else { continue };
        if target.exists() {
            make_room(data_dir, &location, &epoch)?;
            fs::rename(&target, &location)
                .with_context(|| format!("give {} its own place", target.display()))?;
            fsync_dir(parent(&location)?)?;
        }
        ensure!(location.exists(), "{} and {} are gone", target.display(), location.display());
        relink(&link, &location)?;
        settled.push(location);
    }
    Ok(settled)
}

/// Returns the place and the epoch of what was copied to `target`, if that is the name of such a copy.
fn as_copied(target: &Path) -> Option<(PathBuf, String)> {
    let name = target.file_name()?.to_str()?;
    let (place, numbers) = name.rsplit_once(".copy-e")?;
    let (epoch, number) = numbers.split_once('.')?;
    let are_numbers = [epoch, number].iter().all(|n| n.parse::<u64>().is_ok());
    are_numbers.then(|| (target.with_file_name(place), epoch.to_owned()))
}

fn make_room(data_dir: &Path, location: &Path, epoch: &str) -> anyhow::Result<()> {
    if fs::symlink_metadata(location).is_err() {
        return Ok(());
    }
    if is_absent_or_empty(location)? {
        return fs::remove_dir(location).context("remove an empty directory");
    }
    let kept = beside(location, &format!("old-e{epoch}"))?;
    // First, so that old data never leads to new files.
    for (link, target) in links_of_replaced(data_dir)? {
        if target == location {
            relink(&link, &kept)?;
        }
    }
    fs::rename(location, &kept).with_context(|| format!("set {} aside", location.display()))?;
    fsync_dir(parent(location)?).context("sync the parent directory")
}

/// Returns the links of all data that copies have replaced beside `data_dir`.
fn links_of_replaced(data_dir: &Path) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let name = data_dir.file_name().context("the data directory has no name")?.to_string_lossy();
    let prefix = format!("{name}.old-e");
    let mut found = Vec::new();
    for entry in fs::read_dir(parent(data_dir)?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.extend(links(&entry.path())?);
        }
    }
    Ok(found)
}

/// Returns the links to tablespaces of a data directory that may be absent, and where they lead.
pub fn links(data_dir: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let entries = match fs::read_dir(data_dir.join("pg_tblspc")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            found.push((entry.path(), fs::read_link(entry.path())?));
        }
    }
    found.sort();
    Ok(found)
}

/// Has `link` lead to `target`, in one step.
fn relink(link: &Path, target: &Path) -> anyhow::Result<()> {
    let next = link.with_extension("pgdeputy-new");
    let _ = fs::remove_file(&next);
    symlink(target, &next).context("make a link to a tablespace")?;
    fs::rename(&next, link).context("replace a link to a tablespace")?;
    fsync_dir(parent(link)?).context("sync pg_tblspc")
}

/// Returns a name beside `path` that nobody has: a directory that is there already is never reused.
pub fn beside(path: &Path, suffix: &str) -> anyhow::Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
    let name = name.to_string_lossy();
    let mut names = (1..1000).map(|n| path.with_file_name(format!("{name}.{suffix}.{n}")));
    names.find(|path| fs::symlink_metadata(path).is_err()).with_context(|| {
        format!(
            "too many directories of earlier copies stand beside {}: remove some",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests;
