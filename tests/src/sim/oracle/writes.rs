//! Commits and reads: I1, I2, I16, and that an acknowledgement had its quorum (I3).

use crate::sim::executor::Sim;
use crate::sim::oracle::holders;
use crate::sim::wal::{At, BranchId, TxId};
use crate::sim::world::World;

impl Sim {
    /// A commit was released: whoever asks is told that it is done.
    pub fn oracle_acknowledged(&self, member: usize, tx: TxId, at: At) {
        let problems = self.with(|w| {
            let mut problems = Vec::new();
            if let Some(lost) = later_without(w, at) {
                problems.push((
                    "I2",
                    format!("tx {tx} of member {member} is acknowledged, and {lost} lacks it"),
                ));
            }
            if let Some(problem) = without_quorum(w, at) {
                problems.push(("I3", format!("tx {tx} of member {member}: {problem}")));
            }
            let known = w.oracle.acknowledged.entry(at.branch).or_insert(at.lsn);
            *known = (*known).max(at.lsn);
            problems
        });
        for (invariant, text) in problems {
            self.violate(invariant, text);
        }
    }

    /// A client was told that its commit is done.
    pub fn oracle_told(&self, member: usize, tx: TxId, at: At) {
        let now = self.now();
        self.with(|w| {
            w.counts.commits += 1;
            w.oracle.last_commit = now;
        });
        self.trace(|| format!("tx {tx} acknowledged by {member} at {}", at.lsn));
    }

    /// A client of a serving primary has seen all up to `at`.
    pub fn oracle_read(&self, member: usize, at: At) {
        let lost = self.with(|w| {
            w.counts.reads += 1;
            let at = w.wal.normal(at);
            let known = w.oracle.observed.entry(at.branch).or_insert(at.lsn);
            *known = (*known).max(at.lsn);
            None::<String>
        });
        if let Some(lost) = lost {
            self.violate("I16", format!("member {member}: {lost}"));
        }
    }

    /// A primary lets clients in: it has to hold all that was acknowledged and all that was read.
    pub(super) fn judge_opening(&self, member: usize, branch: BranchId) {
        let problems = self.with(|w| {
            let at = At { branch, lsn: w.wal.end(branch) };
            let epoch = w.wal.branch(branch).epoch;
            let lacks = |known: &std::collections::BTreeMap<BranchId, proto::Lsn>| {
                // One that wakes up late in an older epoch lacks what a newer one acknowledged; it can acknowledge
                // nothing, and is fenced (I17).
                let earlier = known.iter().filter(|(o, _)| w.wal.branch(**o).epoch <= epoch);
                earlier.into_iter().find_map(|(other, lsn)| {
                    let needed = At { branch: *other, lsn: *lsn };
                    (!w.wal.covers(at, needed)).then(|| format!("{lsn} of branch {}", other.0))
                })
            };
            let mut problems = Vec::new();
            if let Some(lost) = lacks(&w.oracle.acknowledged) {
                problems
                    .push(("I1", format!("member {member} serves without acknowledged {lost}")));
            }
            if let Some(lost) = lacks(&w.oracle.observed) {
                problems.push((
                    "I16",
                    format!("member {member} serves without {lost}, which was read"),
                ));
            }
            problems
        });
        for (invariant, text) in problems {
            self.violate(invariant, text);
        }
    }
}

/// Returns a later primary that lacks `at`.
fn later_without(w: &World, at: At) -> Option<String> {
    let epoch = w.wal.branch(at.branch).epoch;
    w.wal.branches().find_map(|(id, branch)| {
        let end = At { branch: id, lsn: branch.records.last().copied().unwrap_or(branch.begin) };
        let lacks = branch.epoch > epoch && !w.wal.covers(end, at);
        lacks.then(|| format!("the primary of epoch {}", branch.epoch))
    })
}

/// The leader and any k of the voters of one recorded Cfg hold it, or it is no acknowledgement.
fn without_quorum(w: &World, at: At) -> Option<String> {
    let state = w.oracle.state()?;
    let epoch = w.wal.branch(at.branch).epoch;
    if state.epoch.0 != epoch {
        return None;
    }
    let held = |cfg: &proto::Cfg| holders(w, cfg, at.branch, at.lsn) >= cfg.k && cfg.k > 0;
    let alone = w.oracle.acknowledges_alone(epoch);
    let covered = alone || w.oracle.recorded(epoch).iter().any(held);
    (!covered).then(|| {
        let cfgs: Vec<String> = state.cfgs.iter().map(ToString::to_string).collect();
        format!("acknowledged at {} by no quorum of {}", at.lsn, cfgs.join(", "))
    })
}
