//! What operators want of a run's cluster: drawn from the seed where the profile says so.
//!
//! The one rule: whatever is drawn, the cluster can come back to it once everything is healed.

use std::collections::BTreeSet;

use proto::spec::{Durability, MemberSpec, Permission, SynchronousMode};
use proto::{ClusterSpec, MemberName};

use super::rng::Rng;
use super::world::member_name;

/// Which specs a profile's runs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wishes {
    /// The defaults, with so many standbys that must hold a commit.
    Count(usize),
    /// Anything that the product takes: each mode and durability, members that never vote or lead, priorities.
    Any,
    /// `durability: available`, without limits on members.
    Available,
    /// Any that lets writes go on without whichever member is lost.
    SurvivesOne,
}

impl Wishes {
    /// Draws how many members the cluster has.
    pub fn members(self, usual: usize, rng: &mut Rng) -> usize {
        match self {
            Wishes::Count(_) => usual,
            Wishes::Any => rng.between(2, 5) as usize,
            Wishes::Available => rng.between(2, 3) as usize,
            Wishes::SurvivesOne => rng.between(2, 4) as usize,
        }
    }

    /// Draws a spec for a cluster of so many members.
    pub fn spec(self, members: usize, rng: &mut Rng) -> ClusterSpec {
        let mut spec = ClusterSpec::default();
        match self {
            Wishes::Count(count) => spec.synchronous.count = count,
            Wishes::Any => {
                limit(&mut spec, members, rng);
                let voting = voting(&spec, members).len();
                spec.synchronous.count = rng.between(1, 3.min(voting as u64 - 1)) as usize;
                choose(&mut spec, rng);
            }
            Wishes::Available => {
                spec.synchronous.count = rng.between(1, 2.min(members as u64 - 1)) as usize;
                spec.durability = Durability::Available;
            }
            Wishes::SurvivesOne => {
                choose(&mut spec, rng);
                if members == 2 {
                    spec.durability = Durability::Available;
                }
                let spare = match spec.durability {
                    Durability::Strict => 2,
                    Durability::Available => 1,
                };
                spec.synchronous.count = rng.between(1, (members - spare) as u64) as usize;
            }
        }
        spec
    }
}

fn choose(spec: &mut ClusterSpec, rng: &mut Rng) {
    if rng.percent(40) {
        spec.durability = Durability::Available;
    }
    if rng.percent(35) {
        spec.synchronous.mode = SynchronousMode::Priority;
    }
}

/// Some members never vote, some are never promoted; the first stays a founder, and two at least do both.
fn limit(spec: &mut ClusterSpec, members: usize, rng: &mut Rng) {
    for number in 0..members {
        let never = |rng: &mut Rng| match number > 1 && rng.percent(30) {
            true => Permission::Never,
            false => Permission::Allowed,
        };
        let (vote, promote) = (never(rng), never(rng));
        let wanted =
            MemberSpec { vote, promote, priority: rng.between(0, 2) as u8, ..Default::default() };
        spec.members.insert(member_name(number), wanted);
    }
}

/// Returns the members that may acknowledge commits.
fn voting(spec: &ClusterSpec, members: usize) -> BTreeSet<MemberName> {
    let names = (0..members).map(member_name);
    names.filter(|name| spec.member(name).vote == Permission::Allowed).collect()
}

/// Returns what the Cfg of a healed cluster still lacks; `None` where it is what `spec` asks for.
pub fn lacks(spec: &ClusterSpec, members: usize, cfgs: &[proto::Cfg]) -> Option<String> {
    let [cfg] = cfgs else {
        let shown: Vec<String> = cfgs.iter().map(ToString::to_string).collect();
        return Some(format!("cfgs {}", shown.join(" ")));
    };
    let mut others = voting(spec, members);
    others.remove(&cfg.leader);
    let k = spec.synchronous.count.min(others.len());
    let whole = match spec.synchronous.mode {
        SynchronousMode::Quorum => cfg.voters == others,
        SynchronousMode::Priority => cfg.voters.is_subset(&others) && cfg.voters.len() == k,
    };
    (!whole || cfg.k != k).then(|| format!("cfg {cfg}, of {others:?} {k} are wanted"))
}
