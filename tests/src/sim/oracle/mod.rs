//! Judges what happens by what clients were told and by what lies on the disks, never by what the product believes.
//!
//! The one rule: it shares no code with the deciders or with the check before each commit. Sets that seal, sets that
//! acknowledge and prefixes are worked out here once more.

mod members;
mod planned;
mod store;
#[cfg(test)]
mod tests;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proto::spec::Durability;
use proto::{Cfg, ClusterSpec, ClusterState, Lsn, RequestId};

use super::executor::{Micros, Sim};
use super::faults::Kind;
use super::profiles::Profile;
use super::wal::BranchId;
use super::world::World;

/// Trouble of etcd and of those who only read it: while k voters stream, it is none of the database (I15, I18).
const ETCD_ALONE: &[Kind] = &[
    Kind::StoreAway,
    Kind::StoreLeader,
    Kind::StoreRestored,
    Kind::StoreFull,
    Kind::WatchesBreak,
    Kind::Compaction,
    Kind::KillRouter,
    Kind::KillSentinel,
    Kind::CutSentinel,
    Kind::SlowSentinel,
];

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}

/// A record by which a primary asked its voters for a sign.
struct Sign {
    member: usize,
    begun: Micros,
    branch: BranchId,
    lsn: Lsn,
    cfg: Cfg,
}

/// What is known of the past.
#[derive(Default)]
pub struct Oracle {
    pub violations: Vec<Violation>,
    /// How far each branch was acknowledged, and read by clients of a serving primary.
    acknowledged: BTreeMap<BranchId, Lsn>,
    observed: BTreeMap<BranchId, Lsn>,
    /// Every agreed state, with the time from which it held.
    states: Vec<(Micros, Rc<ClusterState>)>,
    /// The moment from which a primary's right still counted, by the store or by its voters.
    evidence: BTreeMap<usize, Micros>,
    excused_until: BTreeMap<usize, Micros>,
    signs: Vec<Sign>,
    opened: BTreeSet<u64>,
    highest_routed: u64,
    pub last_commit: Micros,
    /// Plans that the product's own check refused: each is a decider's mistake that was caught.
    pub refusals: BTreeSet<String>,
    /// Nothing may happen but commits.
    pub calm: bool,
    /// Nothing happens but switchovers that were asked for.
    pub planned: bool,
    /// Never more than one thing goes wrong at once, and the cluster can do without whichever it is.
    pub single: bool,
    /// The spec lets a primary without voters acknowledge alone, or did so once.
    pub alone: bool,
    /// While the store is set back: the last state before.
    remembered: Option<Rc<ClusterState>>,
    /// An operator is writing the state just now.
    pub adopts: bool,
    pub disks_restored: u32,
    /// How often each request began a switchover, and led to a new epoch.
    begun: BTreeMap<RequestId, u32>,
    led_to: BTreeMap<RequestId, u32>,
}

impl Oracle {
    /// Makes one that knows of nothing yet and demands what the profile promises.
    pub fn of(profile: &Profile, spec: &ClusterSpec) -> Self {
        let only = |kinds: &[Kind]| profile.kinds.iter().all(|kind| kinds.contains(kind));
        Self {
            calm: only(ETCD_ALONE),
            planned: !profile.kinds.is_empty() && only(&[Kind::AskSwitchover]),
            single: profile.one_by_one,
            alone: spec.durability == Durability::Available,
            ..Self::default()
        }
    }

    /// The store now holds an older state: what was recorded since is known here, and to members.
    pub fn store_set_back(&mut self, now: Micros, found: Option<ClusterState>) {
        // One that was set back before, to what was current, needed no adoption: it has gone on since.
        let number = |state: &Rc<ClusterState>| state.number;
        self.remembered = self.remembered.take().into_iter().chain(self.state()).max_by_key(number);
        if let Some(found) = found {
            self.states.push((now, Rc::new(found)));
        }
    }

    /// Returns the Cfgs of `epoch` that are on record, also where a store that was set back has forgotten them.
    fn recorded(&self, epoch: u64) -> Vec<Cfg> {
        let states = self.state().into_iter().chain(self.remembered.clone());
        states
            .filter(|state| state.epoch.0 == epoch)
            .flat_map(|state| state.cfgs.clone())
            .filter(|cfg| cfg.epoch.0 == epoch)
            .collect()
    }

    /// Returns whether the leader of `epoch` alone acknowledges: by the record, and because the spec wants it so.
    fn acknowledges_alone(&self, epoch: u64) -> bool {
        self.alone && self.recorded(epoch).iter().any(|cfg| cfg.k == 0)
    }

    pub fn violate(&mut self, invariant: &'static str, text: String) {
        if self.violations.len() < 10 {
            self.violations.push(Violation { invariant, text });
        }
    }

    pub fn note_refusal(&mut self, text: String) {
        self.refusals.insert(text);
    }

    /// Returns the agreed state.
    pub fn state(&self) -> Option<Rc<ClusterState>> {
        self.states.last().map(|(_, state)| state.clone())
    }
}

impl Sim {
    /// Notes a broken promise.
    pub fn violate(&self, invariant: &'static str, text: String) {
        self.trace(|| format!("VIOLATION {invariant}: {text}"));
        self.with(|w| w.oracle.violate(invariant, text));
    }
}

/// Returns how many of `voters` hold all that was acknowledged, on their disks.
fn holders(w: &World, cfg: &Cfg, branch: BranchId, lsn: Lsn) -> usize {
    let at = super::wal::At { branch, lsn };
    let holds = |index: usize| {
        let data = w.members[index].disk.data.as_ref();
        data.is_some_and(|d| w.wal.covers(d.at, at))
    };
    cfg.voters.iter().filter_map(|v| w.index_of(v)).filter(|i| holds(*i)).count()
}
