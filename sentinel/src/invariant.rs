//! Judges every next state before it is committed.
//!
//! The one rule: it shares no code with the deciders, so that one mistake has to be made twice to
//! get through.

mod planned;

use std::collections::BTreeSet;
use std::fmt;

use proto::cfg::Cfg;
use proto::report::DataDirectory;
use proto::spec::Durability;
use proto::{ClusterState, Epoch, MemberName, MemberReport, Phase, Timeline, WalPosition};

use crate::observe::Observations;

mod orders;

/// A rule that the next state would break, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub detail: String,
}

/// What must hold between one agreed state and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Numbers, epochs and identities only go the way they may.
    Counters,
    /// Sealing is only completed, and only begun when a base can come of it.
    Sealing,
    /// A Cfg leaves only at the front and only by proof of a later one of its epoch.
    Evidence,
    /// Cfgs are well-formed, in order, and led by the primary of their epoch.
    Cfgs,
    /// Who is promoted holds what a base holds.
    Promotion,
    /// Timelines rise, one for each epoch.
    Timelines,
    /// Members stay, and their floors never fall.
    Members,
    /// A restart is for the present primary and not while sealing.
    Restart,
    /// Only what the primary's keeper says opens a phase.
    Opening,
    /// A switchover goes forward, and from its stop on only to another epoch whose primary holds what was stopped.
    Switchover,
    /// A request is answered once, and its end stays as it was told.
    Requests,
    /// Loss is accepted by name and for one seal, and no member is given up beyond that.
    Loss,
    /// While paused nothing is sealed and nothing restarted.
    Paused,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// Returns what is wrong with committing `next` over `old`; nothing if it may be committed.
pub fn check(
    old: Option<&ClusterState>,
    next: &ClusterState,
    seen: &Observations,
) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    cfgs_are_sound(next, &mut found);
    timelines_are_sound(next, &mut found);
    match old {
        None => first(next, seen, &mut found),
        Some(old) => {
            let step = Step { old, next, seen };
            counters(&step, &mut found);
            sealing(&step, &mut found);
            evidence(&step, &mut found);
            appended(&step, &mut found);
            promotion(&step, &mut found);
            timelines(&step, &mut found);
            orders::members(&step, &mut found);
            orders::losses(&step, &mut found);
            orders::paused(&step, &mut found);
            restart(&step, &mut found);
            opening(&step, &mut found);
            planned::handover(&step, &mut found);
            planned::requests(&step, &mut found);
        }
    }
    found.0
}

struct Step<'a> {
    old: &'a ClusterState,
    next: &'a ClusterState,
    seen: &'a Observations,
}

impl Step<'_> {
    /// The position that `name` sealed for the next epoch, if its seal counts.
    fn sealed_at(&self, name: &MemberName) -> Option<WalPosition> {
        let epoch = self.next.epoch;
        let report =
            trusted(self.old, self.seen, name).filter(|r| r.complete && r.promise >= epoch)?;
        let seal = report.seal.filter(|s| s.sealing == epoch)?;
        let floor = self.old.members.get(name)?.floor;
        let held = (seal.position.epoch, seal.position.lsn);
        floor.is_none_or(|f| held >= (f.epoch, f.lsn)).then_some(seal.position)
    }
}

struct Found(Vec<Violation>);

impl Found {
    fn unless(&mut self, holds: bool, rule: Rule, detail: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { rule, detail: detail() });
        }
    }
}

/// Every acknowledging set of `cfg` has a member among `held`: what is left out is too small to
/// acknowledge.
fn meets_every_acknowledging_set(cfg: &Cfg, held: &BTreeSet<MemberName>) -> bool {
    let left_out = cfg.voters.iter().filter(|v| !held.contains(*v)).count();
    held.contains(&cfg.leader) || left_out < cfg.k
}

/// The report of the very member that is admitted under `name`.
fn trusted<'a>(
    state: &ClusterState,
    seen: &'a Observations,
    name: &MemberName,
) -> Option<&'a MemberReport> {
    let report = seen.members.get(name)?;
    let known = state.members.get(name)?.incarnation == report.incarnation;
    let ours =
        report.system_identifier.is_none() || report.system_identifier == state.system_identifier;
    (known && ours).then_some(report)
}

fn first(next: &ClusterState, seen: &Observations, found: &mut Found) {
    let blank = next.epoch == Epoch(0)
        && next.primary.is_none()
        && next.sealing.is_none()
        && next.cfgs.is_empty()
        && next.epochs.is_empty()
        && next.members.is_empty();
    found.unless(next.number.0 == 1 && blank, Rule::Counters, || {
        "a first state has number 1, no epoch, no primary and no Cfg".into()
    });
    let founder_is_empty = match &next.phase {
        Phase::Founding { founder } => {
            seen.members.get(founder).is_some_and(|r| r.data == DataDirectory::Empty)
        }
        Phase::Promoting | Phase::Restarting | Phase::Open | Phase::Switchover(_) => false,
    };
    found.unless(founder_is_empty, Rule::Opening, || {
        "a cluster begins with a founder that reports an empty data directory".into()
    });
}

fn cfgs_are_sound(next: &ClusterState, found: &mut Found) {
    let mut last = 0;
    for cfg in &next.cfgs {
        let n = cfg.voters.len();
        let fits = if cfg.k == 0 { n == 0 } else { cfg.k <= n };
        found.unless(fits && !cfg.voters.contains(&cfg.leader), Rule::Cfgs, || {
            format!("Cfg {cfg} asks for {} of {n} voters, or its leader votes", cfg.k)
        });
        found.unless(cfg.id.0 > last && cfg.id <= next.last_cfg, Rule::Cfgs, || {
            format!("Cfg {cfg} has a number that does not rise, or is above {}", next.last_cfg)
        });
        last = cfg.id.0;
        let leads = next.epochs.iter().any(|r| r.epoch == cfg.epoch && r.primary == cfg.leader);
        found.unless(leads, Rule::Cfgs, || {
            format!("Cfg {cfg} is not led by the primary of epoch {}", cfg.epoch)
        });
        let strangers = cfg.voters.iter().any(|v| !next.members.contains_key(v));
        found.unless(!strangers, Rule::Cfgs, || {
            format!("Cfg {cfg} has voters that were never admitted")
        });
    }
    let newest = next.cfgs.last();
    let in_force = newest.map(|c| c.epoch).unwrap_or_default();
    found.unless(in_force == next.epoch, Rule::Cfgs, || {
        format!("the newest Cfg is of epoch {in_force}, the state of epoch {}", next.epoch)
    });
}

fn timelines_are_sound(next: &ClusterState, found: &mut Found) {
    let mut last = (Epoch(0), Timeline(0));
    for record in &next.epochs {
        let rises = record.epoch > last.0 && record.timeline > last.1;
        found.unless(rises, Rule::Timelines, || {
            format!(
                "epoch {} on timeline {} follows epoch {} on {}",
                record.epoch, record.timeline, last.0, last.1
            )
        });
        last = (record.epoch, record.timeline);
    }
    if let Some(record) = next.epochs.last() {
        let same = record.epoch == next.epoch
            && record.timeline == next.timeline
            && Some(&record.primary) == next.primary.as_ref();
        found.unless(same, Rule::Timelines, || {
            format!("the last epoch on record is {} on timeline {}", record.epoch, record.timeline)
        });
    }
    found.unless(next.timeline <= next.highest_timeline, Rule::Timelines, || {
        format!("timeline {} is above the highest named, {}", next.timeline, next.highest_timeline)
    });
}

fn counters(step: &Step, found: &mut Found) {
    let Step { old, next, .. } = step;
    found.unless(next.number.0 == old.number.0 + 1, Rule::Counters, || {
        format!("state {} follows {}", next.number, old.number)
    });
    let by = next.epoch.0.checked_sub(old.epoch.0);
    found.unless(by.is_some_and(|by| by <= 1), Rule::Counters, || {
        format!("epoch {} follows {}", next.epoch, old.epoch)
    });
    found.unless(old.epoch != next.epoch || old.primary == next.primary, Rule::Counters, || {
        format!("the primary changes within epoch {}", old.epoch)
    });
    found.unless(old.etcd_cluster_id == next.etcd_cluster_id, Rule::Counters, || {
        "the etcd cluster changes".into()
    });
    found.unless(old.adopted == next.adopted, Rule::Counters, || {
        "only an operator adopts a store".into()
    });
    for (name, report) in &step.seen.members {
        let later = report.frozen.as_ref().map(|f| f.acted_on.number);
        found.unless(later.is_none_or(|n| old.adopted > Some(n)), Rule::Counters, || {
            format!("{name} has acted on a later state of this store, and nobody has adopted it")
        });
    }
    let identity_stays =
        old.system_identifier.is_none() || old.system_identifier == next.system_identifier;
    found.unless(identity_stays, Rule::Counters, || "the system identifier changes".into());
    found.unless(next.last_cfg >= old.last_cfg, Rule::Counters, || {
        "a Cfg number would be used again".into()
    });
}

fn sealing(step: &Step, found: &mut Found) {
    let Step { old, next, seen } = step;
    match (old.sealing, next.sealing) {
        (Some(asked), Some(now)) => found.unless(asked == now, Rule::Sealing, || {
            format!("sealing changes from {asked} to {now}")
        }),
        (Some(asked), None) => found.unless(next.epoch == asked, Rule::Sealing, || {
            format!("sealing {asked} is taken back")
        }),
        (None, Some(now)) => {
            found.unless(
                now.0 == old.epoch.0 + 1 && next.epoch == old.epoch,
                Rule::Sealing,
                || format!("sealing {now} does not follow epoch {}", old.epoch),
            );
            let is_live = |m: &&MemberName| trusted(old, seen, m).is_some_and(|r| r.complete);
            let live: BTreeSet<MemberName> = old.members.keys().filter(is_live).cloned().collect();
            let given_up = orders::given_up(next, now);
            let covered: BTreeSet<MemberName> = live.union(&given_up).cloned().collect();
            for cfg in old.cfgs.iter().filter(|c| !meets_every_acknowledging_set(c, &covered)) {
                found.unless(false, Rule::Sealing, || {
                    format!("sealing {now} for nothing: the live members cannot seal Cfg {cfg}")
                });
            }
        }
        (None, None) => {
            let founded = old.epoch == Epoch(0) && next.epoch == Epoch(1);
            found.unless(old.epoch == next.epoch || founded, Rule::Sealing, || {
                format!("epoch {} begins without a seal", next.epoch)
            });
        }
    }
    if next.sealing.is_some() {
        found.unless(next.cfgs == old.cfgs, Rule::Sealing, || "Cfgs change while sealing".into());
    }
}

fn evidence(step: &Step, found: &mut Found) {
    let Step { old, next, seen } = step;
    let kept: Vec<&Cfg> = old.cfgs.iter().filter(|c| next.cfgs.contains(c)).collect();
    let dropped = old.cfgs.len() - kept.len();
    let at_front = old.cfgs.iter().skip(dropped).eq(kept.iter().copied());
    let in_place = next.cfgs.iter().take(kept.len()).eq(kept.iter().copied());
    found.unless(at_front && in_place, Rule::Evidence, || {
        "a Cfg changes, or leaves from the middle".into()
    });
    if dropped == 0 || orders::is_promoted_with_loss(step) {
        return;
    }
    let report = old.primary.as_ref().and_then(|p| trusted(old, seen, p));
    let proof = report.and_then(|r| r.confirmed.as_ref());
    let proven = proof.and_then(|proof| {
        let cfg = kept.iter().find(|c| c.id == proof.cfg && c.epoch == old.epoch)?;
        let holders = cfg.voters.iter().filter(|v| proof.voters.contains(*v)).count();
        (holders >= cfg.k).then_some(cfg.id)
    });
    for cfg in old.cfgs.iter().take(dropped) {
        found.unless(proven.is_some_and(|id| cfg.id < id), Rule::Evidence, || {
            format!("Cfg {cfg} leaves without proof of a later one")
        });
    }
}

fn appended(step: &Step, found: &mut Found) {
    let Step { old, next, seen } = step;
    let new: Vec<&Cfg> = next.cfgs.iter().filter(|c| !old.cfgs.contains(c)).collect();
    found.unless(new.len() <= 1, Rule::Cfgs, || format!("{} Cfgs are appended at once", new.len()));
    for cfg in new {
        found.unless(cfg.id > old.last_cfg && cfg.epoch == next.epoch, Rule::Cfgs, || {
            format!("Cfg {cfg} has a used number or another epoch than {}", next.epoch)
        });
        let before = old.cfgs.last().filter(|b| b.epoch == cfg.epoch);
        // After a time without voters the k before that is not known any more.
        let rises =
            before.is_some_and(|b| if b.k == 0 { cfg.k > 1 && b.id.0 > 1 } else { cfg.k > b.k });
        let fresh =
            before.is_none_or(|b| if rises { cfg.round > b.round } else { cfg.round >= b.round });
        found.unless(fresh, Rule::Cfgs, || {
            format!("k rises in Cfg {cfg} and its names are not fresh")
        });
        // Down to none, a primary acknowledges alone: only where the operator wants it so.
        let wanted = seen.durability == Durability::Available
            || old.orders.leaving.values().any(|l| l.below_count);
        found.unless(before.is_none() || cfg.k > 0 || wanted, Rule::Cfgs, || {
            format!("Cfg {cfg} gives up its voters")
        });
    }
}

fn promotion(step: &Step, found: &mut Found) {
    let Step { old, next, .. } = step;
    if next.epoch == old.epoch || old.epoch == Epoch(0) {
        return;
    }
    let (Some(chosen), Some(primary)) = (next.chosen, &next.primary) else {
        return found
            .unless(false, Rule::Promotion, || "nobody is chosen, or not by a position".into());
    };
    let counted = |name: &MemberName| step.sealed_at(name);
    let own = counted(primary);
    found.unless(own == Some(chosen), Rule::Promotion, || {
        format!("{primary} is chosen at {chosen}, and its seal does not say so")
    });
    // Whoever holds more than the chosen one proves nothing about it.
    let not_beyond = |m: &&MemberName| counted(m).is_some_and(|p| p <= chosen);
    let mut base: BTreeSet<MemberName> = old.members.keys().filter(not_beyond).cloned().collect();
    if orders::is_promoted_with_loss(step) {
        let best = old.members.keys().filter_map(counted).max();
        found.unless(best == Some(chosen), Rule::Promotion, || {
            format!("{primary} is promoted with loss at {chosen}, and a sealed member holds more")
        });
        base.extend(orders::given_up(old, next.epoch));
    }
    for cfg in old.cfgs.iter().filter(|c| !meets_every_acknowledging_set(c, &base)) {
        found.unless(false, Rule::Promotion, || {
            format!("{primary} could lack commits that were acknowledged under Cfg {cfg}")
        });
    }
    found.unless(next.phase == Phase::Promoting, Rule::Promotion, || {
        "a promotion skips its phase".into()
    });
}

fn timelines(step: &Step, found: &mut Found) {
    let Step { old, next, .. } = step;
    found.unless(next.highest_timeline >= old.highest_timeline, Rule::Timelines, || {
        "the highest timeline falls".into()
    });
    let rises = old.epoch == Epoch(0) || next.timeline > old.highest_timeline;
    let holds = if next.epoch == old.epoch { next.timeline == old.timeline } else { rises };
    found.unless(holds, Rule::Timelines, || {
        format!("timeline {} of epoch {} was named before", next.timeline, next.epoch)
    });
    let same = |(before, after): (&proto::state::EpochRecord, &proto::state::EpochRecord)| {
        let start = before.start_lsn.is_none() || before.start_lsn == after.start_lsn;
        start
            && (before.epoch, before.timeline, &before.primary)
                == (after.epoch, after.timeline, &after.primary)
    };
    let first = next.epochs.first().map(|r| r.epoch).unwrap_or_default();
    let kept = old.epochs.iter().skip_while(|r| r.epoch < first);
    let left = old.epochs.len() - kept.clone().count();
    let grown = next.epochs.len() + left >= old.epochs.len() && kept.zip(&next.epochs).all(same);
    found.unless(grown, Rule::Timelines, || "the record of epochs is rewritten".into());
    // A Cfg whose epoch is forgotten is found by the rule of its leader.
    found.unless(left == 0 || next.epochs.len() > 100, Rule::Timelines, || {
        format!("{left} epochs are forgotten though few are on record")
    });
}

fn restart(step: &Step, found: &mut Found) {
    let Step { old, next, .. } = step;
    if next.restart == old.restart {
        return found.unless(
            old.phase == Phase::Restarting || next.phase != Phase::Restarting,
            Rule::Restart,
            || "a restart without an order".into(),
        );
    }
    let Some(order) = &next.restart else { return };
    let rises = old.restart.as_ref().is_none_or(|before| order.number > before.number);
    let fits = Some(&order.member) == next.primary.as_ref() && order.epoch == next.epoch;
    found.unless(rises && fits, Rule::Restart, || {
        format!("restart {} of {} does not fit epoch {}", order.number, order.member, next.epoch)
    });
    found.unless(old.sealing.is_none() && next.sealing.is_none(), Rule::Restart, || {
        "a restart is ordered while sealing".into()
    });
}

fn opening(step: &Step, found: &mut Found) {
    let Step { old, next, seen } = step;
    // One that is called off goes back to where it came from.
    let served = matches!(old.phase, Phase::Open | Phase::Switchover(_));
    if next.phase != Phase::Open || served && old.epoch == next.epoch {
        return;
    }
    let opened = next.primary.as_ref().and_then(|p| trusted(old, seen, p)).and_then(|r| r.opened);
    let fits = opened.is_some_and(|o| o.epoch == next.epoch && o.timeline == next.timeline);
    found.unless(fits && old.epoch == next.epoch, Rule::Opening, || {
        format!("epoch {} opens without the word of its primary's keeper", next.epoch)
    });
}
