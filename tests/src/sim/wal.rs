//! The WAL of the whole cluster as a tree: a branch for each timeline that was ever written, and a position in it for
//! each member. Prefix and divergence are then questions about paths.

use proto::{Lsn, Timeline};

/// A small segment, so that runs cross segment boundaries.
pub const SEGMENT: u64 = 1 << 16;

pub type TxId = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId(pub usize);

/// A byte position on one branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub branch: BranchId,
    pub lsn: Lsn,
}

#[derive(Debug, Clone)]
pub struct Branch {
    pub tli: Timeline,
    /// Where it left its parent.
    pub parent: Option<At>,
    pub begin: Lsn,
    /// Where its records end.
    pub records: Vec<Lsn>,
    /// The epoch of its first writer, for the oracle.
    pub epoch: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Wal {
    branches: Vec<Branch>,
}

impl Wal {
    pub fn branch(&self, id: BranchId) -> &Branch {
        &self.branches[id.0]
    }

    pub fn branches(&self) -> impl Iterator<Item = (BranchId, &Branch)> {
        self.branches.iter().enumerate().map(|(i, b)| (BranchId(i), b))
    }

    /// Begins a branch; its first record is written by the caller.
    pub fn fork(&mut self, tli: Timeline, parent: Option<At>, epoch: u64) -> BranchId {
        let begin = parent.map_or(Lsn(0x20_0000), |p| p.lsn);
        let parent = parent.map(|p| self.normal(p));
        self.branches.push(Branch { tli, parent, begin, records: Vec::new(), epoch });
        BranchId(self.branches.len() - 1)
    }

    /// Appends a record at the end of a branch.
    pub fn append(&mut self, branch: BranchId, size: u64) -> Lsn {
        let end = Lsn(self.end(branch).0 + size.max(8));
        self.branches[branch.0].records.push(end);
        end
    }

    /// Returns the end of what was ever written on a branch and not lost again.
    pub fn end(&self, branch: BranchId) -> Lsn {
        let branch = &self.branches[branch.0];
        branch.records.last().copied().unwrap_or(branch.begin)
    }

    /// Forgets what was written past `lsn` and never left its writer.
    pub fn truncate(&mut self, branch: BranchId, lsn: Lsn) {
        self.branches[branch.0].records.retain(|end| *end <= lsn);
    }

    /// A position at a switch point belongs to the parent: nothing of the child lies before it.
    pub fn normal(&self, at: At) -> At {
        let mut at = at;
        while let Some(parent) = self.branches[at.branch.0].parent {
            if at.lsn > parent.lsn {
                break;
            }
            at.branch = parent.branch;
        }
        at
    }

    /// Returns the end of the last whole record at or before `at`.
    pub fn whole(&self, at: At) -> At {
        let at = self.normal(at);
        let branch = &self.branches[at.branch.0];
        let count = branch.records.partition_point(|end| *end <= at.lsn);
        let lsn = count.checked_sub(1).map_or(branch.begin, |last| branch.records[last]);
        self.normal(At { branch: at.branch, lsn: lsn.min(at.lsn) })
    }

    /// Returns how far the path to `at` goes on `branch`.
    pub fn limit(&self, at: At, branch: BranchId) -> Option<Lsn> {
        let mut at = at;
        loop {
            if at.branch == branch {
                return Some(at.lsn);
            }
            let parent = self.branches[at.branch.0].parent?;
            at = At { branch: parent.branch, lsn: parent.lsn.min(at.lsn) };
        }
    }

    /// Returns whether whoever holds all up to `at` holds all up to `other`.
    pub fn covers(&self, at: At, other: At) -> bool {
        let other = self.normal(other);
        self.limit(at, other.branch).is_some_and(|limit| limit >= other.lsn)
    }

    /// Returns the position `lsn` on the path to `at`.
    pub fn on_path(&self, at: At, lsn: Lsn) -> At {
        self.normal(At { branch: at.branch, lsn: lsn.min(at.lsn) })
    }

    /// Returns the branch that follows `from` on the path to `to`, and where.
    pub fn next_on_path(&self, from: BranchId, to: BranchId) -> Option<(BranchId, Lsn)> {
        let mut at = to;
        loop {
            let parent = self.branches[at.0].parent?;
            if parent.branch == from {
                return Some((at, parent.lsn));
            }
            at = parent.branch;
        }
    }
}

/// Returns where the segment that holds `lsn` begins.
pub fn segment_start(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 / SEGMENT * SEGMENT)
}
