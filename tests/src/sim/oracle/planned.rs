//! What was asked for: I12, and I18 where only etcd is in trouble.

use proto::state::SwitchoverStep;
use proto::{ClusterState, RequestId};

use crate::sim::executor::{Micros, Sim};
use crate::sim::postgres::Phase;
use crate::sim::world::World;

type Problem = (&'static str, String);

/// From when a cluster that was founded without a fault serves.
const SERVES_FROM: Micros = 15_000_000;

/// Judges a change of the state by the switchovers in it.
pub fn judge(w: &mut World, before: &ClusterState, next: &ClusterState) -> Vec<Problem> {
    let mut problems = Vec::new();
    if w.oracle.remembered.is_some() {
        // The store was set back. A leader that has not heard of it may write; no member acts on that.
        return problems;
    }
    let asked = |state: &ClusterState| state.switchover().map(|s| s.request.clone());
    if let Some(request) = asked(next).filter(|_| asked(next) != asked(before)) {
        problems.extend(twice(w.oracle.begun.entry(request.clone()).or_default(), &request));
    }
    if next.epoch > before.epoch && before.epoch.0 > 0 {
        match asked(before) {
            Some(request) => {
                let count = w.oracle.led_to.entry(request.clone()).or_default();
                problems.extend(twice(count, &request));
                problems.extend(loses(w, before, next));
            }
            None if w.oracle.planned => {
                problems.push(("I12", format!("epoch {} was not asked for", next.epoch)));
            }
            None => {}
        }
    }
    problems
}

fn twice(count: &mut u32, request: &RequestId) -> Option<Problem> {
    *count += 1;
    (*count > 1).then(|| ("I12", format!("request {request} is carried out {count} times")))
}

/// While the stopped primary says what it holds, the next one holds it too, acknowledged or not.
fn loses(w: &World, before: &ClusterState, next: &ClusterState) -> Option<Problem> {
    let sealed = matches!(before.switchover()?.step, SwitchoverStep::Sealed { .. });
    let (old, new) = (w.index_of(before.primary.as_ref()?)?, w.index_of(next.primary.as_ref()?)?);
    let key = w.keys.member(&w.members[old].name);
    let reports = w.etcd.core.read(&key).entries.contains_key(&key);
    if !sealed || !reports || w.oracle.disks_restored > 0 {
        return None;
    }
    let (had, has) = (w.members[old].disk.data.as_ref()?, w.members[new].disk.data.as_ref()?);
    let needed = had.end(&w.wal);
    (!w.wal.covers(has.at, needed))
        .then(|| ("I12", format!("{} lacks what {} held, up to {}", new, old, needed.lsn)))
}

/// After any single failure writes come back within a minute: this long no client may be without a commit.
const WRITES_WITHIN: Micros = 60_000_000;

/// Writes come back, whichever single thing went wrong.
pub fn writes(w: &World, now: Micros) -> Option<Problem> {
    let since = now.saturating_sub(w.oracle.last_commit.max(SERVES_FROM));
    (w.oracle.single && since > WRITES_WITHIN)
        .then(|| ("writes", format!("no commit for {} s", since / 1_000_000)))
}

/// I18: somebody serves all the time.
pub fn serves(w: &World, now: Micros) -> Option<Problem> {
    let serves = w.members.iter().any(|m| {
        m.server.as_ref().is_some_and(|s| s.phase == Phase::Primary && s.lets_clients_in())
    });
    let demanded = w.oracle.calm && now > SERVES_FROM;
    (demanded && !serves).then(|| ("I18", "nobody serves, and only etcd is in trouble".to_owned()))
}

impl Sim {
    /// Data is replaced although nothing but switchovers happened.
    pub fn oracle_rewinds(&self, member: usize) {
        if self.with(|w| w.oracle.planned) && self.now() > SERVES_FROM {
            self.violate("I12", format!("member {member} is rewound or copied after a switchover"));
        }
    }

    /// At the end of a run: what was asked for has come to its end.
    pub fn oracle_ends(&self) {
        let waits = self.with(|w| {
            let state = w.oracle.state()?;
            state.switchover().map(|s| s.request.clone()).filter(|_| w.oracle.planned)
        });
        if let Some(request) = waits {
            self.violate("I12", format!("request {request} has no end"));
        }
    }
}
