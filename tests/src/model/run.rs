//! Runs a check and says in one line what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use proto::{ClusterState, Moment};
use proxy_config::route::{Answers, Known, Routes, route};
use stateright::{Checker, HasDiscoveries, Model as _};

use super::leader::Reach;
use super::property::PROMISES;
use super::state::Left;
use super::{Bounds, Model};

/// What every commit exhausts: one failover with everything that comes of it, one commit, one death of anything.
pub const SHORT: Bounds = bounds(Reach { failovers: 1, changes: 0, restarts: 0 }, LITTLE);

/// What `make test-long` exhausts besides: one change of the voters with one commit and one death.
pub const CHANGE: Bounds = bounds(Reach { failovers: 0, changes: 1, restarts: 0 }, LITTLE);

/// What every commit exhausts besides: one failover of a primary that lives on, called silent, cut off or frozen, with
/// all that it does meanwhile and after it has thawed, and one commit.
pub const LIVES: Bounds = bounds(Reach { failovers: 1, changes: 0, restarts: 0 }, CALLED_SILENT);

/// The same with a leader that writes late.
pub const LATE: Bounds =
    bounds(Reach { failovers: 1, changes: 0, restarts: 0 }, Left { late: 1, ..CALLED_SILENT });

/// Where mistakes are looked for: a failover with one change of the voters.
pub const JOINT: Bounds = bounds(Reach { failovers: 1, changes: 1, restarts: 0 }, LITTLE);

const CALLED_SILENT: Left = Left { commits: 1, crashes: 0, lapses: 0, late: 0, silences: 1 };

const LITTLE: Left = Left { commits: 1, crashes: 1, lapses: 0, late: 0, silences: 0 };

/// What `make model-long` searches: two failovers, also of a primary that lives on, and two commits.
pub const LONG: Bounds = Bounds {
    reach: Reach { failovers: 2, changes: 1, restarts: 0 },
    left: Left { commits: 2, crashes: 1, lapses: 1, late: 1, silences: 2 },
    late_reports: true,
};

const fn bounds(reach: Reach, left: Left) -> Bounds {
    Bounds { reach, left, late_reports: false }
}

/// What came of a check.
pub struct Outcome {
    pub states: usize,
    pub depth: usize,
    /// The promises that were broken, each with the steps that lead there.
    pub violations: Vec<(&'static str, Vec<String>)>,
    /// What never happened though it should be possible.
    pub missing: Vec<&'static str>,
    pub exhausted: bool,
    pub took: Duration,
    /// How often the product's deciders were asked something new.
    pub decisions: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "model: states={} depth={} violations={} exhausted={}",
            self.states,
            self.depth,
            self.violations.len(),
            self.exhausted
        )
    }
}

/// Looks at every state within `bounds`, for at most `patience`; a check of a mistake ends with what it finds first.
pub fn check(bounds: Bounds, mutant: Option<&'static str>, patience: Duration) -> Outcome {
    let names: Vec<&str> = PROMISES.iter().map(|p| p.name).collect();
    let begun = store::clock::now();
    let checker = Model::new(bounds, mutant)
        .checker()
        .threads(2)
        .timeout(patience)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let mut violations = Vec::new();
    for (name, path) in checker.discoveries() {
        if names.contains(&name) {
            let steps = path.into_actions().iter().map(|a| format!("{a:?}")).collect();
            violations.push((name, steps));
        }
    }
    violations.extend(backwards(checker.model()));
    let missing = checker.model().properties().iter().map(|p| p.name).collect::<Vec<_>>();
    let missing = missing
        .into_iter()
        .filter(|name| !names.contains(name) && checker.discovery(name).is_none())
        .collect();
    Outcome {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        // A checker that runs out of time says that it is done, too.
        exhausted: store::clock::now().since(begun) < patience && violations.is_empty(),
        took: store::clock::now().since(begun),
        violations,
        missing,
        decisions: checker.model().leader.decisions() + checker.model().keepers.decisions(),
    }
}

/// I19: whichever two agreed states a router is told of, in whatever order, it never routes writes by the lower epoch.
fn backwards(model: &Model) -> Option<(&'static str, Vec<String>)> {
    let documents = &model.documents;
    let reports: BTreeMap<_, _> =
        documents.reports.all().map(|report| (report.member.clone(), (**report).clone())).collect();
    let states: BTreeMap<_, &ClusterState> = documents
        .agreed
        .all()
        .map(|agreed| ((agreed.epoch, agreed.state.writable_primary()), &*agreed.state))
        .collect();
    let answers = Answers::new();
    let told = |state: &ClusterState, previous: Option<&Routes>| {
        let known = Known {
            spec: &documents.spec,
            state: Some(state),
            reports: &reports,
            answers: &answers,
        };
        route(&known, previous, Moment::default())
    };
    for first in states.values() {
        let before = told(first, None);
        for second in states.values() {
            let previous = Some(&before).filter(|_| !model.is("router-takes-a-lower-epoch"));
            let after = told(second, previous);
            if after.write.is_some() && after.epoch < before.epoch {
                let steps = [before.epoch, after.epoch].map(|e| format!("told of epoch {e}"));
                return Some(("I19 routers never go backwards", steps.to_vec()));
            }
        }
    }
    None
}
