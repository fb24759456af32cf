//! The agreed state as it is written: I2, I4, I7, I15, and what primaries rest on for I10 and I17.

use std::collections::BTreeSet;
use std::rc::Rc;

use proto::document::Reader;
use proto::{Cfg, ClusterState, MemberName, Phase, StateNumber};
use store::WatchEvent;

use super::planned;
use crate::sim::executor::{Micros, Sim};
use crate::sim::restore::holds_less;
use crate::sim::wal::At;
use crate::sim::world::World;

impl Sim {
    /// Looks at every change of the store.
    pub fn oracle_store(&self, event: &WatchEvent) {
        let WatchEvent::Put { key, entry } = event else { return };
        if *key != self.with(|w| w.keys.state()) {
            return;
        }
        let read = self.with(|w| w.read.read::<ClusterState>(key, &entry.value));
        let Ok(next) = read else {
            return self.violate("I7", "the state cannot be read".into());
        };
        let now = self.now();
        let before = self.with(|w| w.oracle.state());
        let problems = self.with(|w| match before.as_deref() {
            Some(before) if !w.oracle.adopts => {
                let mut problems = judge(w, Some(before), &next);
                problems.extend(planned::judge(w, before, &next));
                problems
            }
            Some(_) => adopted(w, &next),
            None => judge(w, None, &next),
        });
        self.trace(|| {
            let cfgs: Vec<String> = next.cfgs.iter().map(ToString::to_string).collect();
            format!(
                "state {} epoch {} {:?} primary {:?} sealing {:?} cfgs {}",
                next.number,
                next.epoch,
                next.phase,
                next.primary,
                next.sealing,
                cfgs.join(" ")
            )
        });
        self.with(|w| note(w, now, before.as_deref(), next));
        for (invariant, text) in problems {
            self.violate(invariant, text);
        }
        for member in 0..self.with(|w| w.members.len()) {
            self.oracle_look(member);
        }
    }

    /// Returns the number of the state by which a member has acted.
    pub fn acted_on(&self, member: usize) -> StateNumber {
        let acted = |w: &mut World| Some(w.members[member].disk.files.as_ref()?.state_number);
        self.with(acted).unwrap_or_default()
    }

    /// A keeper has read a state that may still name its member, and asked for it at `sent`, when the member had acted by the
    /// state `acted_on`. An older one than that is of a store that was set back, and names nobody.
    pub fn oracle_renewed(
        &self,
        member: usize,
        state: &ClusterState,
        (sent, acted_on): (Micros, StateNumber),
    ) {
        self.with(|w| {
            let named = state.primary.as_ref() == Some(&w.members[member].name);
            if named && state.number >= acted_on && state.sealing.is_none() {
                let known = w.oracle.evidence.entry(member).or_default();
                *known = (*known).max(sent);
            }
        });
    }
}

/// Any |V|-k+1 voters, or the leader, are in `members`.
fn seals(cfg: &Cfg, members: &BTreeSet<MemberName>) -> bool {
    let voters = cfg.voters.iter().filter(|v| members.contains(*v)).count();
    members.contains(&cfg.leader) || (cfg.k >= 1 && voters + cfg.k > cfg.voters.len())
}

/// An operator vouches for a state: it is above all that was ever written, and says again what was agreed last.
fn adopted(w: &mut World, next: &ClusterState) -> Vec<(&'static str, String)> {
    let highest = w.oracle.states.iter().map(|(_, s)| (s.number, s.epoch)).max();
    let last = w.oracle.remembered.take();
    let mut problems = Vec::new();
    if highest.is_some_and(|(number, _)| next.number <= number) {
        problems.push(("I18", format!("state {} is adopted, and {highest:?} was", next.number)));
    }
    if last.is_some_and(|last| next.epoch < last.epoch) {
        problems.push(("I18", format!("epoch {} is adopted, and a later one was", next.epoch)));
    }
    problems
}

fn judge(
    w: &World,
    before: Option<&ClusterState>,
    next: &ClusterState,
) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let number = before.map_or(0, |b| b.number.0);
    if next.number.0 != number + 1 {
        problems.push(("I7", format!("state {} was written over {number}", next.number)));
    }
    let Some(before) = before else { return problems };
    if next.epoch < before.epoch {
        problems.push(("I7", format!("epoch {} follows {}", next.epoch, before.epoch)));
    }
    if next.epoch > before.epoch && before.epoch.0 > 0 {
        let promised = promised(w, before, next.epoch.0);
        for cfg in before.cfgs.iter().filter(|c| !seals(c, &promised)) {
            problems.push((
                "I2",
                format!("epoch {} begins, and {promised:?} do not seal {cfg}", next.epoch),
            ));
        }
    }
    let dropped = before.cfgs.iter().any(|c| !next.cfgs.contains(c));
    if dropped && !next.cfgs.iter().any(|cfg| holds_everything(w, cfg)) {
        problems
            .push(("I4", "a Cfg leaves, and no later one holds all that was acknowledged".into()));
    }
    let founding = before.epoch.0 == 0;
    let restarted = next.restart != before.restart && !founding;
    if w.oracle.calm && (restarted || next.sealing.is_some()) {
        problems.push(("I15", format!("without a fault: {:?} {:?}", next.restart, next.sealing)));
    }
    problems
}

/// Who has promised `epoch` on disk, receives nothing of an older one, and holds what it was seen to hold (I11).
fn promised(w: &World, before: &ClusterState, epoch: u64) -> BTreeSet<MemberName> {
    let sealed = w.members.iter().filter(|m| {
        let files = m.disk.files.as_ref();
        let promised = files.is_some_and(|f| f.promise.0 >= epoch && f.complete);
        let serves = m.server.as_ref().is_some_and(|s| {
            s.lets_clients_in()
                && s.phase == crate::sim::postgres::Phase::Primary
                && w.wal.branch(s.branch).epoch < epoch
        });
        let floor = before.members.get(&m.name).and_then(|admitted| admitted.floor);
        let short = floor.is_some_and(|floor| holds_less(w, &m.disk, floor));
        promised && !serves && !short
    });
    sealed.map(|m| m.name.clone()).collect()
}

/// k voters of `cfg`, or its leader where it has none, hold on their disks all that was ever acknowledged.
fn holds_everything(w: &World, cfg: &Cfg) -> bool {
    let holds = |name: &&MemberName| {
        let data = w.index_of(name).and_then(|i| w.members[i].disk.data.as_ref());
        data.is_some_and(|data| {
            let acknowledged = w.oracle.acknowledged.iter();
            acknowledged.into_iter().all(|(b, l)| w.wal.covers(data.at, At { branch: *b, lsn: *l }))
        })
    };
    match cfg.k {
        0 => holds(&&cfg.leader),
        k => cfg.voters.iter().filter(holds).count() >= k,
    }
}

fn note(w: &mut World, now: Micros, before: Option<&ClusterState>, next: ClusterState) {
    let epoch_before = before.map_or(0, |b| b.epoch.0);
    let restart_before = before.and_then(|b| b.restart.as_ref()).map_or(0, |r| r.number);
    let restart = next.restart.as_ref().map_or(0, |r| r.number);
    w.counts.failovers += u64::from(epoch_before > 0 && next.epoch.0 > epoch_before);
    w.counts.restarts += u64::from(restart > restart_before && restart > 1);
    let named = next.primary.as_ref().and_then(|p| w.index_of(p));
    if let Some(member) = named
        && next.sealing.is_none()
        && (next.phase != Phase::Open || next.epoch.0 > epoch_before)
    {
        w.oracle.evidence.insert(member, now);
    }
    w.oracle.states.push((now, Rc::new(next)));
    w.stir(now);
}
