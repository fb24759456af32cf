//! The leader: the product's `decide` on what stands in etcd, its `invariant` on what comes of that, for every way in
//! which the timers can have run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proto::{ClusterState, Epoch, Moment, PrimaryKey, WallTime};
use sentinel::decide::{conditions, decide};
use sentinel::invariant;
use sentinel::observe::{Condition, Observations, Stored, Timers};
use sentinel::plan::Verdict;

use super::documents::{Documents, Memory, STORE};
use super::mistakes;
use super::state::{MEMBERS, Right};

/// All that a leader reads in one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Snapshot {
    pub agreed: u16,
    pub right: Option<Right>,
    pub reports: [Option<u16>; MEMBERS],
    /// Every standby says that it hears nothing of the primary.
    pub silent: bool,
}

/// How far the cluster may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    pub failovers: u64,
    /// Changes of the voters beyond the first Cfg of each epoch.
    pub changes: u64,
    pub restarts: u64,
}

/// What a leader may do on one snapshot.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    pub next: Vec<u16>,
    /// The product's own check refused what its decider wanted.
    pub refused: Option<String>,
}

#[derive(Default)]
pub struct Leader {
    memory: Memory<Snapshot, Arc<Choices>>,
}

/// Timers that have run out began this long ago; the rest begin now. Less than the gap after which a leader forgets them.
const LONG_AGO: Duration = Duration::from_secs(4);
const NOW: Moment = Moment::since_boot(Duration::from_secs(1_000));

impl Leader {
    /// Returns every next state that this snapshot can lead to.
    pub fn choices(
        &self,
        documents: &Documents,
        (reach, mutant): (Reach, Option<&str>),
        snapshot: Snapshot,
    ) -> Arc<Choices> {
        self.memory.answer(snapshot, || Arc::new(work_out(documents, (reach, mutant), snapshot)))
    }

    /// Returns how many distinct snapshots were decided on.
    pub fn decisions(&self) -> usize {
        self.memory.len()
    }
}

fn work_out(
    documents: &Documents,
    (reach, mutant): (Reach, Option<&str>),
    snapshot: Snapshot,
) -> Choices {
    let state = documents.agreed.get(snapshot.agreed).state.clone();
    let mut seen = observations(documents, &snapshot);
    mistakes::in_observations(mutant, &mut seen);
    let mut choices = Choices::default();
    for timers in all_timers(&conditions(&documents.spec, &state, &seen)) {
        seen.held = timers;
        let mut plan = decide(&documents.spec, Some(&*state), &seen, NOW, WallTime(0));
        let mutated = mistakes::in_plan(mutant, &state, &seen, &mut plan);
        let Verdict::Change { next, why, .. } = plan.verdict else { continue };
        if !within(reach, &next) {
            continue;
        }
        let found = invariant::check(Some(&*state), &next, &seen);
        if let Some(first) = found.first().filter(|_| !mutated) {
            choices.refused = Some(format!("{why}: {first}"));
            continue;
        }
        let next = documents.agree(*next);
        if !choices.next.contains(&next) {
            choices.next.push(next);
        }
    }
    choices
}

fn observations(documents: &Documents, snapshot: &Snapshot) -> Observations {
    let reports = snapshot.reports.iter().zip(&documents.names);
    let mut members: BTreeMap<_, _> = reports
        .filter_map(|(report, name)| {
            Some((name.clone(), (**documents.reports.get((*report)?)).clone()))
        })
        .collect();
    if snapshot.silent {
        let epoch = Epoch(documents.agreed.get(snapshot.agreed).epoch.into());
        members.values_mut().for_each(|report| report.silence = Some(epoch));
    }
    let primary_key = match snapshot.right {
        None => Stored::Absent,
        Some(right) => Stored::Known(PrimaryKey {
            member: documents.names[right.member as usize].clone(),
            epoch: Epoch(right.epoch.into()),
            incarnation: documents.incarnation(right.member as usize),
        }),
    };
    Observations {
        leader: "s1".to_owned(),
        etcd_cluster_id: STORE.to_owned(),
        members,
        primary_key,
        durability: documents.spec.durability,
        ..Observations::default()
    }
}

/// None has run out, all have, each one alone, and all but each one.
fn all_timers(holding: &BTreeSet<Condition>) -> Vec<Timers> {
    let mut choices: Vec<BTreeSet<Condition>> = vec![BTreeSet::new(), holding.clone()];
    for one in holding {
        choices.push([one.clone()].into());
        choices.push(holding.iter().filter(|c| *c != one).cloned().collect());
    }
    choices.dedup();
    let timers = choices.into_iter().map(|run_out| {
        let mut timers = Timers::default();
        timers.update(run_out, NOW - LONG_AGO);
        timers.update(holding.clone(), NOW);
        timers
    });
    timers.collect()
}

/// The bound of what is looked at: beyond it nothing is written.
fn within(reach: Reach, next: &ClusterState) -> bool {
    let failovers = next.epoch.0 - 1;
    let sealing = next.sealing.map_or(0, |sealing| sealing.0 - 1);
    let changes = next.last_cfg.0 - 2 - failovers.min(next.last_cfg.0 - 2);
    let restarts = next.restart.as_ref().map_or(0, |order| order.number);
    failovers.max(sealing) <= reach.failovers
        && changes <= reach.changes
        && restarts <= reach.restarts
}
