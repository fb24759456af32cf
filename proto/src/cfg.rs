//! Who acknowledges commits: `{leader, voters, k}`, its acknowledging sets, and the sets that seal it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CfgId, Epoch, MemberName};

/// The name in `synchronous_standby_names` that no member can have: names have no underscore.
pub const NOBODY: &str = "nobody_can_have_this_name";

/// A commit is acknowledged once `leader` and any `k` of `voters` hold it durably.
///
/// Holds always (I8, redteam A7): `1 <= k <= voters.len()`, or `k == 0` with no voters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cfg {
    pub id: CfgId,
    /// The epoch that `leader` leads.
    pub epoch: Epoch,
    pub leader: MemberName,
    pub voters: BTreeSet<MemberName>,
    pub k: usize,
    /// Tells apart the names of Cfgs of one epoch between which k rose; part of the voters' names.
    pub round: u32,
}

impl Cfg {
    /// Returns whether `k` and the voters fit each other.
    pub fn is_well_formed(&self) -> bool {
        let n = self.voters.len();
        !self.voters.contains(&self.leader)
            && (if n == 0 { self.k == 0 } else { (1..=n).contains(&self.k) })
    }

    /// Returns whether `members` meet every acknowledging set of this Cfg: the leader alone, or any
    /// |V|-k+1 of the voters.
    pub fn is_sealed_by(&self, members: &BTreeSet<MemberName>) -> bool {
        if members.contains(&self.leader) {
            return true;
        }
        self.k > 0 && self.voters.intersection(members).count() > self.voters.len() - self.k
    }

    /// Returns whether every acknowledging set of this Cfg contains `member`.
    pub fn always_acknowledges(&self, member: &MemberName) -> bool {
        self.leader == *member || (self.k == self.voters.len() && self.voters.contains(member))
    }

    /// Returns the name under which `member` connects while this Cfg is in force.
    pub fn wire_name(&self, member: &MemberName) -> String {
        wire_name(member, self.epoch, self.round)
    }

    /// Returns the value of `synchronous_standby_names` that enforces this Cfg.
    ///
    /// Never empty: without voters it waits for a name that nobody has (strict), see I8.
    pub fn standby_names(&self) -> String {
        if self.voters.is_empty() {
            return unsatisfiable_names();
        }
        format!("ANY {} ({})", self.k, self.quoted_voters())
    }

    /// Returns the `FIRST k` list with an impossible name in front, under which each walsender that has reloaded
    /// shows its own place (2, 3, ...) as `sync_priority`. It acknowledges only what `standby_names` would.
    pub fn proving_names(&self) -> String {
        format!("FIRST {} (\"{NOBODY}\", {})", self.k, self.quoted_voters())
    }

    fn quoted_voters(&self) -> String {
        let names: Vec<String> =
            self.voters.iter().map(|v| format!("\"{}\"", self.wire_name(v))).collect();
        names.join(", ")
    }
}

impl fmt::Display for Cfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let voters: Vec<&str> = self.voters.iter().map(MemberName::as_str).collect();
        write!(f, "#{} {{{}; {}; {}}}", self.id, self.leader, voters.join(","), self.k)
    }
}

/// Returns the list that no standby satisfies, so that every synchronous commit waits.
pub fn unsatisfiable_names() -> String {
    format!("ANY 1 (\"{NOBODY}\")")
}

/// Returns a voter's name on the wire: `b.e7`, or `b.e7.r2` after k rose twice in epoch 7.
pub fn wire_name(member: &MemberName, epoch: Epoch, round: u32) -> String {
    match round {
        0 => format!("{member}.e{epoch}"),
        _ => format!("{member}.e{epoch}.r{round}"),
    }
}

/// Returns the name under which an incomplete member, or one that may not vote, streams: no list ever holds it.
pub fn joining_name(member: &MemberName, epoch: Epoch) -> String {
    format!("{member}.e{epoch}.joining")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<MemberName> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn cfg(voters: &[&str], k: usize) -> Cfg {
        let leader = "a".parse().unwrap();
        Cfg { id: CfgId(1), epoch: Epoch(7), leader, voters: names(voters), k, round: 0 }
    }

    #[test]
    fn every_seal_set_meets_every_acknowledging_set() {
        for voters in [&["b"][..], &["b", "c"], &["b", "c", "d"], &["b", "c", "d", "e"]] {
            for k in 1..=voters.len() {
                let cfg = cfg(voters, k);
                let subsets = (0..1 << voters.len()).map(|bits: u32| {
                    (0..voters.len())
                        .filter(|i| bits >> i & 1 == 1)
                        .map(|i| voters[i])
                        .collect::<Vec<_>>()
                });
                for sealing in subsets.clone().map(|s| names(&s)).filter(|s| cfg.is_sealed_by(s)) {
                    for acknowledging in subsets.clone().map(|s| names(&s)).filter(|s| s.len() >= k)
                    {
                        assert!(!sealing.is_disjoint(&acknowledging), "{cfg}");
                    }
                }
            }
        }
    }

    #[test]
    fn without_voters_only_the_leader_seals_and_the_list_waits_for_nobody() {
        let alone = cfg(&[], 0);
        assert!(alone.is_well_formed());
        assert!(alone.is_sealed_by(&names(&["a"])) && !alone.is_sealed_by(&names(&["b", "c"])));
        assert_eq!(alone.standby_names(), "ANY 1 (\"nobody_can_have_this_name\")");
    }

    #[test]
    fn a_member_of_every_acknowledging_set_is_the_leader_or_one_of_voters_that_all_have_to_agree() {
        let is_in = |cfg: &Cfg, m: &str| cfg.always_acknowledges(&m.parse().unwrap());
        let (one, both) = (cfg(&["b", "c"], 1), cfg(&["b", "c"], 2));
        assert!(is_in(&one, "a") && !is_in(&one, "b") && !is_in(&one, "c"));
        assert!(is_in(&both, "a") && is_in(&both, "b") && !is_in(&both, "d"));
        assert!(!is_in(&cfg(&[], 0), "b"));
    }

    #[test]
    fn names_carry_epoch_and_round() {
        let mut two = cfg(&["b", "c"], 1);
        assert_eq!(two.standby_names(), "ANY 1 (\"b.e7\", \"c.e7\")");
        two.round = 2;
        assert_eq!(
            two.proving_names(),
            "FIRST 1 (\"nobody_can_have_this_name\", \"b.e7.r2\", \"c.e7.r2\")"
        );
    }

    #[test]
    fn a_cfg_with_more_asked_than_there_are_voters_is_not_well_formed() {
        assert!(!cfg(&["b"], 2).is_well_formed() && !cfg(&["b"], 0).is_well_formed());
        assert!(!cfg(&["a"], 1).is_well_formed());
    }
}
