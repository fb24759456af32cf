//! Deliberate mistakes, to show that the oracles have teeth. They are made here, around the product's deciders and in the
//! modelled shell, by name and for one run: nothing of them is in the product.

use keeper::action::Action;
use keeper::facts::{ClusterView, Facts};
use proto::ClusterState;
use sentinel::observe::{Observations, World as Seen};
use sentinel::plan::{Plan, Verdict};

use super::executor::Sim;

/// A mistake, what it is, and the profile that is to find it.
pub struct Mutant {
    pub name: &'static str,
    pub what: &'static str,
    pub profile: &'static str,
}

const fn mutant(name: &'static str, what: &'static str, profile: &'static str) -> Mutant {
    Mutant { name, what, profile }
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant("promise-not-durable", "a seal is reported and its promise is not on disk", "heavy"),
    mutant("credentials-stay", "the seal leaves the epoch's password", "freeze"),
    mutant("receiver-not-ended", "the seal does not end the receiver", "freeze"),
    mutant("position-before-cut", "the position is read before the receiver is ended", "heavy"),
    mutant("incomplete-member-counts", "the leader counts incomplete members", "heavy"),
    mutant("complete-after-rewind", "a rewound member counts at once", "heavy"),
    mutant("rewind-without-mark", "the mark is not set before a rewind", "heavy"),
    mutant("names-after-promotion", "the names follow the promotion", "heavy"),
    mutant("names-empty-on-standbys", "a standby's list is empty", "heavy"),
    mutant("no-placeholders", "named timelines are not reserved", "heavy"),
    mutant(
        "open-without-voters",
        "a primary opens though no voter holds what it recovered",
        "heavy",
    ),
    mutant("restart-opens-at-once", "a primary is started open", "heavy"),
    mutant("confirm-without-evidence", "a Cfg is confirmed and nobody has flushed", "heavy"),
    mutant("walsenders-not-proven", "a Cfg is confirmed by one reload", "freeze"),
    mutant("walsenders-word-counts", "a walsender's flush position counts alone", "heavy"),
    mutant("canary-not-looked-at", "backends are not seen to wait", "heavy"),
    mutant("piece-not-seen", "a seal trusts the receiver's position over a piece", "heavy"),
    mutant("piece-stays", "pieces are not set aside", "heavy"),
    mutant("renewal-counts-from-receipt", "a renewal counts from its answer", "network"),
    mutant("keepalive-alone-renews", "a keepalive renews the right", "network"),
    mutant("sealing-does-not-stop-renewal", "a sealed state still renews the right", "network"),
    mutant("sign-without-causality", "an old flush position is a sign", "network"),
    mutant("stale-sentinel-without-guard", "the leader's write has no guards", "network"),
    mutant(
        "leader-goes-on-after-its-lease",
        "a deposed leader goes on (guards catch it)",
        "network",
    ),
    mutant("router-takes-a-lower-epoch", "the router follows any state", "restore"),
    mutant("promote-any-live-standby", "whoever has sealed first is promoted", "heavy"),
    mutant("promote-the-least", "of a base the one that holds the least is promoted", "heavy"),
    mutant("new-epoch-forgets-cfgs", "a promotion drops the Cfgs before it", "heavy"),
    mutant(
        "cfg-dropped-to-cancel",
        "a change that hangs is cancelled by dropping the Cfg",
        "heavy",
    ),
    mutant("change-without-joint", "a new Cfg takes the old one's place at once", "heavy"),
    mutant(
        "late-member-follows-at-once",
        "a member past the fork follows under its voter's name",
        "heavy",
    ),
    mutant("fence-is-forgotten", "an old primary is not fenced for a seal", "heavy"),
    mutant("missing-report-is-silence", "an absent report reads as a lost primary", "etcd"),
    mutant("timeline-used-again", "an epoch gets the timeline of the one before", "heavy"),
];

impl Sim {
    /// Returns whether this run makes the mistake `name`.
    pub fn mutant(&self, name: &str) -> bool {
        self.with(|w| w.mutant.as_deref() == Some(name))
    }

    /// What the leader believes, with a mistake in it.
    pub fn mutate_seen(&self, seen: &mut Seen) {
        if self.mutant("incomplete-member-counts") {
            for report in seen.seen.members.values_mut() {
                report.complete = true;
            }
        }
        if self.mutant("missing-report-is-silence") {
            let primary = match &seen.state {
                sentinel::observe::Stored::Known(state) => state.primary.clone(),
                _ => None,
            };
            let epoch = match &seen.state {
                sentinel::observe::Stored::Known(state) => Some(state.epoch),
                _ => None,
            };
            let gone = primary.is_some_and(|p| !seen.seen.members.contains_key(&p));
            if gone {
                for report in seen.seen.members.values_mut() {
                    report.silence = epoch;
                }
            }
        }
    }

    /// What the leader decided, with a mistake in it; true where there is one, and the check is skipped.
    pub fn mutate_plan(
        &self,
        state: Option<&ClusterState>,
        seen: &Observations,
        plan: &mut Plan,
    ) -> bool {
        let Some(mutant) = self.with(|w| w.mutant.clone()) else { return false };
        let Some(state) = state else { return false };
        match mutant.as_str() {
            "promote-any-live-standby" => promote_any(state, seen, plan),
            "promote-the-least" => promote_least(state, seen, plan),
            "new-epoch-forgets-cfgs" => change(plan, |next| {
                let new = next.epoch > state.epoch;
                next.cfgs.retain(|c| !new || c.epoch == next.epoch);
                new
            }),
            "change-without-joint" => change(plan, |next| {
                let grown = next.epoch == state.epoch && next.cfgs.len() > state.cfgs.len();
                if grown {
                    next.cfgs.drain(..next.cfgs.len() - 1);
                }
                grown
            }),
            "cfg-dropped-to-cancel" => cancel(state, plan),
            "timeline-used-again" => change(plan, |next| {
                let new = next.epoch > state.epoch && state.epoch.0 > 0;
                if new {
                    next.timeline = state.timeline;
                    next.highest_timeline = state.timeline;
                    if let Some(record) = next.epochs.last_mut() {
                        record.timeline = state.timeline;
                    }
                }
                new
            }),
            "incomplete-member-counts" | "missing-report-is-silence" => true,
            _ => false,
        }
    }

    /// What a keeper decided, with a mistake in it.
    pub fn mutated_action(&self, view: &ClusterView, facts: &Facts, action: Action) -> Action {
        match self.with(|w| w.mutant.clone()).as_deref() {
            Some("late-member-follows-at-once") => follow_at_once(view, facts, action),
            Some("fence-is-forgotten") => match action {
                Action::Fence(keeper::action::FenceReason::Sealing(sealing)) => {
                    Action::Seal { sealing }
                }
                other => other,
            },
            _ => action,
        }
    }
}

fn change(plan: &mut Plan, f: impl FnOnce(&mut ClusterState) -> bool) -> bool {
    match &mut plan.verdict {
        Verdict::Change { next, .. } => f(next),
        Verdict::Record { .. } | Verdict::Wait(_) => false,
    }
}

/// While a base is waited for, the first member that sealed is taken.
fn promote_any(state: &ClusterState, seen: &Observations, plan: &mut Plan) -> bool {
    let (Some(sealing), Verdict::Wait(_)) = (state.sealing, &plan.verdict) else { return false };
    let sealed = seen.members.iter().find_map(|(name, report)| {
        let seal = report.sealed_for(sealing)?;
        (Some(name) != state.primary.as_ref()).then_some((name.clone(), *seal))
    });
    let Some((name, seal)) = sealed else { return false };
    let next = promoted(state, sealing, name, seal.position);
    let why = "promote whoever sealed".to_owned();
    plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    true
}

fn promoted(
    state: &ClusterState,
    epoch: proto::Epoch,
    name: proto::MemberName,
    position: proto::WalPosition,
) -> ClusterState {
    let mut next = state.clone();
    next.number = next.number.next();
    next.sealing = None;
    next.epoch = epoch;
    next.phase = proto::Phase::Promoting;
    next.timeline = state.highest_timeline.next();
    next.highest_timeline = next.timeline;
    next.chosen = Some(position);
    next.open_at_once = true;
    next.last_cfg = next.last_cfg.next();
    let voters = state.members.keys().filter(|m| **m != name).cloned().collect();
    next.cfgs.push(proto::Cfg {
        id: next.last_cfg,
        epoch,
        leader: name.clone(),
        voters,
        k: 1,
        round: 0,
    });
    next.epochs.push(proto::state::EpochRecord {
        epoch,
        timeline: next.timeline,
        primary: name.clone(),
        parent: Some(position.timeline),
        start_lsn: None,
    });
    next.primary = Some(name);
    next
}

/// Where the decider promotes, the one that holds the least of those who sealed is taken.
fn promote_least(state: &ClusterState, seen: &Observations, plan: &mut Plan) -> bool {
    let (Some(sealing), Verdict::Change { next, .. }) = (state.sealing, &mut plan.verdict) else {
        return false;
    };
    if next.epoch == state.epoch {
        return false;
    }
    let sealed = seen.members.iter().filter_map(|(n, r)| Some((n, *r.sealed_for(sealing)?)));
    let live = sealed.filter(|(n, _)| Some(*n) != state.primary.as_ref());
    let Some((name, seal)) = live.min_by_key(|(_, s)| s.position) else { return false };
    **next = promoted(state, sealing, name.clone(), seal.position);
    true
}

fn cancel(state: &ClusterState, plan: &mut Plan) -> bool {
    let waits = matches!(plan.verdict, Verdict::Wait(_));
    let joint = state.cfgs.len() > 1 && state.cfgs.iter().all(|c| c.epoch == state.epoch);
    if !waits || !joint || state.sealing.is_some() {
        return false;
    }
    let mut next = state.clone();
    next.number = next.number.next();
    next.cfgs.pop();
    let why = "cancel the change".to_owned();
    plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    true
}

/// Neither a seal nor a look at the fork before a member takes up a new primary.
fn follow_at_once(view: &ClusterView, facts: &Facts, action: Action) -> Action {
    let Some(state) = &view.state else { return action };
    let proto::Assignment::Follow(follow) = proto::assignment::assignment(state, &facts.member)
    else {
        return action;
    };
    let voter = keeper::postgres::settings::StreamName::Voter { round: follow.round };
    match action {
        Action::Seal { .. } | Action::Fence(keeper::action::FenceReason::PastTheFork) => {
            Action::Repoint { follow, name: voter }
        }
        Action::Rewind { .. } | Action::Copy { .. } if facts.files.complete => {
            Action::StartStandby { follow, name: voter }
        }
        other => other,
    }
}
