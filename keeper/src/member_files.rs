//! What stands beside the data directory: the member's promise, and all that must outlive its data.
//!
//! Rule: promise, epoch and state number never go down (I5), and nothing acts on them before they are on disk.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use proto::report::RejoinBy;
use proto::{
    Cfg, ClusterState, DecodeError, Document, Epoch, Incarnation, Lsn, MemberName, StateNumber,
    SystemIdentifier, Timeline, WallTime,
};
use serde::{Deserialize, Serialize};

use crate::durable;

/// The member's own record, stored as `<state dir>/member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberFiles {
    pub member: MemberName,
    pub incarnation: Incarnation,
    /// The epoch below which this member serves nobody and receives nothing.
    pub promise: Epoch,
    /// The epoch that this member belongs to.
    pub epoch: Epoch,
    /// What it was last told to be in `epoch`.
    pub role: Role,
    /// False while WAL or data may be missing: it counts in no seal set and is no candidate.
    pub complete: bool,
    /// The highest agreed state that was acted on: a store that shows a lower one was restored.
    pub state_number: StateNumber,
    pub etcd_cluster_id: Option<String>,
    pub system_identifier: Option<SystemIdentifier>,
    /// The last Cfg that this member reported confirmed as primary of `epoch`.
    pub confirmed: Option<Cfg>,
    pub lease_id: Option<i64>,
    /// The number of the last restart order that was carried out: a second death needs a second order, also when
    /// the keeper has been restarted in between.
    #[serde(default)]
    pub restarted: u64,
    /// Present from before a rejoin touches the data until that is whole again.
    pub rejoin: Option<RejoinMarker>,
    /// The state with `state_number`.
    #[serde(default)]
    pub acted_on: Option<ClusterState>,
    /// The store was restored or swapped: nothing in it is acted on until an operator has vouched for it.
    #[serde(default)]
    pub frozen: bool,
}

impl MemberFiles {
    /// The record of a member that never was one.
    pub fn new(member: MemberName, incarnation: Incarnation) -> Self {
        Self {
            member,
            incarnation,
            promise: Default::default(),
            epoch: Default::default(),
            role: Role::None,
            complete: false,
            state_number: Default::default(),
            etcd_cluster_id: None,
            system_identifier: None,
            confirmed: None,
            lease_id: None,
            restarted: 0,
            rejoin: None,
            acted_on: None,
            frozen: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    None,
    Standby,
    Primary,
}

/// A rejoin that is under way. With one in a phase other than `CatchingUp` nothing but the rejoin starts PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejoinMarker {
    pub by: RejoinBy,
    /// The epoch that it leads to.
    pub epoch: Epoch,
    pub source: MemberName,
    /// Blocks of this timeline may be mixed into the data: a retry against another one is a copy.
    pub source_timeline: Timeline,
    pub attempt: u32,
    pub phase: RejoinPhase,
    /// What the source had written when the rewind ended: the member is complete beyond it.
    pub until: Option<Lsn>,
    /// Where a rewind leaves this member's own WAL, which a second try can no longer find out from the data.
    #[serde(default)]
    pub fork: Option<Fork>,
    /// The boot of the machine in which this attempt began: what a rewind had written and not yet synced is gone after
    /// another one, although the control file may say that it had finished.
    #[serde(default)]
    pub boot: Option<String>,
    pub started: WallTime,
}

/// The end of the newest timeline that a member has in common with its new primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    pub timeline: Timeline,
    pub lsn: Lsn,
}

impl RejoinMarker {
    /// Returns whether PostgreSQL may be started on the data.
    pub fn may_start(&self) -> bool {
        self.phase == RejoinPhase::CatchingUp
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejoinPhase {
    /// The data directory is being rewound: half of it may be the source's. It must not be started.
    Modifying,
    /// The data is whole but for what the source streams: PostgreSQL may be started, as a standby.
    CatchingUp,
    /// A copy is being made beside data that counts for nothing: complete data is left unmarked meanwhile.
    Copying,
    /// The data directory is being moved aside and the copy put in its place, where that takes two steps.
    Swapping,
}

impl Document for MemberFiles {
    const KIND: &'static str = "member.json";
}

/// Why the member files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemberFilesError {
    #[error(
        "another keeper ({holder}) has {dir}: stop it, or give this one a --state-dir of its own"
    )]
    Locked { dir: String, holder: String },
    /// Damaged or newer. Never overwritten, because the promise in it would be lost.
    #[error("{path}: {problem}")]
    Unreadable { path: String, problem: DecodeError },
    #[error("{doing} {path}: {problem}")]
    Io { doing: &'static str, path: String, problem: io::Error },
}

/// The member files of one state directory, locked for this process.
#[derive(Debug)]
pub struct MemberStore {
    path: PathBuf,
    /// What is known to be on disk and durable, once it was read.
    on_disk: Option<Option<MemberFiles>>,
    /// Held for the life of the store; the kernel releases it however this process ends.
    _lock: Flock<File>,
}

impl MemberStore {
    /// Makes `state_dir` if it is absent, and locks it.
    pub fn open(state_dir: &Path) -> Result<Self, MemberFilesError> {
        create_private(state_dir).map_err(failed("create directory", state_dir))?;
        let lock = lock(state_dir)?;
        Ok(Self { path: state_dir.join("member.json"), on_disk: None, _lock: lock })
    }

    /// Returns what is on disk. `None` means a member that never was one: incomplete, without a promise.
    pub fn load(&mut self) -> Result<Option<MemberFiles>, MemberFilesError> {
        if let Some(known) = &self.on_disk {
            return Ok(known.clone());
        }
        let text = durable::read_optional(&self.path).map_err(failed("read", &self.path))?;
        let read = match text {
            None => None,
            Some(text) => {
                Some(proto::document::decode::<MemberFiles>(&text).map_err(|problem| {
                    MemberFilesError::Unreadable { path: self.path.display().to_string(), problem }
                })?)
            }
        };
        if read.is_some() {
            // Who wrote it may have died between the rename and its sync: nothing may act on what a power loss undoes.
            sync(&self.path).map_err(failed("sync", &self.path))?;
        }
        self.on_disk = Some(read.clone());
        Ok(read)
    }

    /// Puts `files` on disk. They are durable when it returns without an error; after an error either version may be.
    ///
    /// Panics if a number would go down: that is a mistake of the caller which must not reach the disk.
    pub fn save(&mut self, files: &MemberFiles) -> Result<(), MemberFilesError> {
        if let Some(before) = self.load()? {
            if before == *files {
                return Ok(());
            }
            assert!(files.promise >= before.promise, "promise goes down: {before:?} to {files:?}");
            assert!(files.epoch >= before.epoch, "epoch goes down: {before:?} to {files:?}");
            assert!(
                files.state_number >= before.state_number,
                "state number goes down: {before:?} to {files:?}"
            );
        }
        // After an error the disk is read again rather than believed.
        self.on_disk = None;
        let mut text = proto::document::encode(files);
        text.push('\n');
        durable::write_atomic(&self.path, text.as_bytes(), 0o600)
            .map_err(failed("write", &self.path))?;
        self.on_disk = Some(Some(files.clone()));
        Ok(())
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    durable::fsync_dir(durable::parent(path)?)
}

fn create_private(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    durable::fsync_dir(durable::parent(dir)?)
}

fn lock(state_dir: &Path) -> Result<Flock<File>, MemberFilesError> {
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            write_pid(&mut lock).map_err(failed("write", &path))?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            // The pid is for people only: the lock itself is the kernel's.
            let holder = match file.read_to_string(&mut pid) {
                Ok(_) if !pid.trim().is_empty() => format!("pid {}", pid.trim()),
                Ok(_) | Err(_) => "its pid is not known yet".to_owned(),
            };
            Err(MemberFilesError::Locked { dir: state_dir.display().to_string(), holder })
        }
        Err((_, errno)) => Err(failed("lock", &path)(errno.into())),
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemberFilesError {
    let path = path.display().to_string();
    move |problem| MemberFilesError::Io { doing, path, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(promise: u64, epoch: u64, state_number: u64) -> MemberFiles {
        MemberFiles {
            member: "a".parse().unwrap(),
            incarnation: Incarnation::from_random(7),
            promise: Epoch(promise),
            epoch: Epoch(epoch),
            role: Role::Standby,
            complete: true,
            state_number: StateNumber(state_number),
            etcd_cluster_id: Some("cdf818194e3a8c32".into()),
            system_identifier: Some(SystemIdentifier(7_574_891_230_112_233_445)),
            confirmed: None,
            restarted: 0,
            lease_id: Some(7_587_848_123_456_789_012),
            rejoin: Some(RejoinMarker {
                by: RejoinBy::Rewind,
                epoch: Epoch(epoch),
                source: "b".parse().unwrap(),
                source_timeline: Timeline(4),
                attempt: 1,
                phase: RejoinPhase::Modifying,
                until: None,
                fork: None,
                boot: None,
                started: WallTime(1_790_000_000_000),
            }),
            acted_on: None,
            frozen: false,
        }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("data.pgdeputy");
        let mut store = MemberStore::open(&state_dir).unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.save(&files(3, 2, 40)).unwrap();
        drop(store);
        let mut store = MemberStore::open(&state_dir).unwrap();
        assert_eq!(store.load().unwrap(), Some(files(3, 2, 40)));
        assert_eq!(fs::metadata(&state_dir).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn no_number_ever_goes_down_on_disk() {
        for lower in [files(2, 2, 40), files(3, 1, 40), files(3, 2, 39)] {
            let dir = tempfile::tempdir().unwrap();
            let mut store = MemberStore::open(dir.path()).unwrap();
            store.save(&files(3, 2, 40)).unwrap();
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _ = store.save(&lower);
            }));
            assert!(caught.is_err(), "{lower:?} was taken");
            drop(store);
            let mut store = MemberStore::open(dir.path()).unwrap();
            assert_eq!(store.load().unwrap(), Some(files(3, 2, 40)));
        }
    }

    #[test]
    fn a_save_by_a_fresh_process_is_checked_against_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        MemberStore::open(dir.path()).unwrap().save(&files(3, 2, 40)).unwrap();
        let caught = std::panic::catch_unwind(|| {
            let _ = MemberStore::open(dir.path()).unwrap().save(&files(1, 1, 1));
        });
        assert!(caught.is_err());
    }

    #[test]
    fn a_second_keeper_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = MemberStore::open(dir.path()).unwrap();
        let error = MemberStore::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains("--state-dir"), "{error}");
        drop(first);
        MemberStore::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_or_damaged_record_is_an_error_and_never_overwritten() {
        for text in [r#"{"format_version":99,"promise":5}"#, "{", "", r#"{"format_version":1}"#] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("member.json");
            fs::write(&path, text).unwrap();
            let mut store = MemberStore::open(dir.path()).unwrap();
            assert!(matches!(store.load(), Err(MemberFilesError::Unreadable { .. })), "{text}");
            assert!(store.save(&files(9, 9, 99)).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
