//! What outlives processes: a member's data directory and the files beside it.

use std::collections::BTreeSet;

use keeper::facts::ClusterView;
use keeper::member_files::MemberFiles;
use keeper::postgres::settings::Settings;
use proto::spec::PostgresSpec;
use proto::{Epoch, Lsn, Timeline};

use super::executor::Micros;
use super::wal::{At, Wal, segment_start};

/// The data directory of one member.
#[derive(Debug, Clone)]
pub struct Data {
    /// How far its WAL is on disk and synced; may lie within a record.
    pub at: At,
    /// How far it is written; a crash of the machine loses what lies between.
    pub written: At,
    /// The timeline of the last checkpoint or restartpoint (pg_control).
    pub control: Timeline,
    /// Stopped in an orderly way, nothing to recover.
    pub clean: bool,
    pub standby_signal: bool,
    /// Timelines with a history file, and those with an empty one.
    pub histories: BTreeSet<u32>,
    pub placeholders: BTreeSet<u32>,
    /// The segment of the fork was begun anew on a timeline that is not reached yet: how far it is filled.
    pub piece: Option<(Timeline, Lsn)>,
    /// Half of it is another member's.
    pub mixed: bool,
    /// Its pages may be of so much WAL, though it holds less: nobody is let in before all of that is replayed.
    pub needed: Option<At>,
}

impl Data {
    /// Returns the end of its last whole record, as a scan of the files finds it.
    pub fn end(&self, wal: &Wal) -> At {
        wal.whole(self.at)
    }

    /// Whether it holds all the WAL that its pages may be of.
    pub fn is_consistent(&self, wal: &Wal) -> bool {
        self.needed.is_none_or(|needed| wal.covers(self.at, needed))
    }

    /// What recovery takes for the end of WAL: a piece of a newer timeline stands in for the whole segment.
    pub fn end_for_recovery(&self, wal: &Wal) -> At {
        match self.piece {
            Some((_, filled)) if filled >= segment_start(self.at.lsn) && filled < self.at.lsn => {
                wal.whole(wal.on_path(self.at, filled))
            }
            _ => wal.whole(self.at),
        }
    }

    /// Returns what `findNewestTimeLine` finds: it looks for the next history until one is missing. A promotion takes the
    /// timeline after it.
    pub fn newest_timeline(&self, own: Timeline) -> u32 {
        let is_there = |tli: &u32| self.histories.contains(tli) || self.placeholders.contains(tli);
        (own.0 + 1..).take_while(is_there).last().unwrap_or(own.0)
    }

    /// Whether recovery ends with "requested timeline is not a child of this server's history": its target has a history that
    /// is empty.
    pub fn aims_at_a_placeholder(&self, own: Timeline) -> bool {
        let newest = self.newest_timeline(own);
        newest > own.0 && !self.histories.contains(&newest)
    }
}

/// One member's disk.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub data: Option<Data>,
    pub files: Option<MemberFiles>,
    pub settings: Option<Settings>,
    pub accepted: Option<PostgresSpec>,
    /// The member's copy of what was agreed.
    pub copy: Option<ClusterView>,
    /// The epochs for which a replication password lies there.
    pub passfiles: BTreeSet<Epoch>,
    /// A promise that is in force again once the keeper ends: only a deliberate mistake leaves one.
    pub forgets: Option<Epoch>,
    /// Data directories that were set aside.
    pub kept: Vec<Data>,
    /// Syncs return only after this moment.
    pub stalled_until: Micros,
    /// Microseconds that a sync takes longer than usual.
    pub slow_sync: Micros,
}

impl Disk {
    /// Whether it holds a data directory that nothing is being made of, and files beside it.
    pub fn is_whole(&self) -> bool {
        let rejoins = self.files.as_ref().is_none_or(|files| files.rejoin.is_some());
        !rejoins && self.data.as_ref().is_some_and(|data| !data.mixed)
    }

    /// The machine has lost its power: what was not synced is gone.
    pub fn lose_unsynced(&mut self) {
        if let Some(data) = &mut self.data {
            data.written = data.at;
        }
    }

    /// A process was killed: what it had written is in the kernel's hands.
    pub fn keep_written(&mut self) {
        if let Some(data) = &mut self.data {
            data.at = data.written;
        }
    }
}
