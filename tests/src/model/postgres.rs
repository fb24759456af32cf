//! What PostgreSQL does by itself: replicate, load new names process by process, release commits, and end.
//!
//! Written anew for the model, and small.

use super::documents::Documents;
use super::keeper::source;
use super::state::{
    At, Commit, Known, MEMBERS, Marker, Member, Name, Rule, Sender, Server, State, Step,
};
use crate::model::keeper::receives;

/// Returns the place of a walsender's name in its own list; `None` where it is not there.
fn place(documents: &Documents, member: usize, sender: &Sender) -> Option<usize> {
    let (cfg, first) = match sender.rule {
        Rule::Nobody | Rule::Empty => return None,
        Rule::Any(cfg) => (cfg, false),
        Rule::First(cfg) => (cfg, true),
    };
    let cfg = documents.cfgs.get(cfg.into());
    let round = sender.name.round?;
    if (cfg.epoch.0, cfg.round) != (sender.name.epoch.into(), round.into()) {
        return None;
    }
    let at = cfg.voters.iter().position(|v| *v == documents.names[member])?;
    // The name that nobody can have stands in front.
    Some(if first { at + 2 } else { 1 })
}

/// Returns what `sync_priority` shows for each walsender of `primary`.
pub fn priorities(documents: &Documents, primary: &Member) -> Vec<(usize, Sender, i32)> {
    let senders = primary.senders.iter().enumerate();
    let shown = senders.filter_map(|(i, sender)| Some((i, (*sender)?)));
    shown.map(|(i, s)| (i, s, place(documents, i, &s).map_or(0, |p| p as i32))).collect()
}

/// Returns whether some walsender of `primary` would release a commit that ends at `lsn`: each one judges by the list
/// that it has loaded, and by the places that all have found for themselves.
pub fn releases(documents: &Documents, primary: &Member, lsn: u8) -> bool {
    let places: Vec<(usize, usize, u8)> = priorities(documents, primary)
        .into_iter()
        .filter(|(_, _, priority)| *priority > 0)
        .map(|(i, sender, priority)| (priority as usize, i, sender.flush))
        .collect();
    places.iter().any(|(_, me, _)| {
        let Some(sender) = primary.senders[*me] else { return false };
        let (cfg, first) = match sender.rule {
            Rule::Nobody | Rule::Empty => return false,
            Rule::Any(cfg) => (cfg, false),
            Rule::First(cfg) => (cfg, true),
        };
        let k = documents.cfgs.get(cfg.into()).k;
        let mut counted = places.clone();
        if k == 0 || counted.len() < k {
            return false;
        }
        match first {
            true => {
                counted.sort_unstable();
                counted.truncate(k);
                counted.iter().any(|c| c.1 == *me) && counted.iter().all(|c| c.2 >= lsn)
            }
            false => counted.iter().filter(|c| c.2 >= lsn).count() >= k,
        }
    })
}

/// A standby's receiver connects under the name in its settings.
pub fn connect(documents: &Documents, state: &mut State, member: usize) -> bool {
    let me = state.members[member];
    let (Server::Standby, None, Some(name)) = (me.server, me.receiver, me.upstream) else {
        return false;
    };
    let Some(from) = source(documents, state, name) else { return false };
    // A primary that is still in recovery is not taken up by the product's rule; one that was a primary and is a standby
    // again would hand WAL on, and acknowledges nothing.
    if from == member || state.members[from].server != Server::Primary {
        return false;
    }
    state.members[member].receiver = Some(name);
    let rule = state.members[from].names;
    // The first reply gives the own position as flushed, wherever that lies.
    state.members[from].senders[member] = Some(Sender { name, rule, flush: me.at.lsn });
    stream_on(documents, state, member);
    true
}

/// Notes the timeline that is streamed.
fn stream_on(documents: &Documents, state: &mut State, member: usize) {
    state.members[member].streamed = receives(documents, state, member);
}

/// A standby receives, writes and flushes one more record, and says so.
pub fn receive(documents: &Documents, state: &mut State, member: usize) -> bool {
    let me = state.members[member];
    let Some(name) = me.receiver else { return false };
    let Some(from) = source(documents, state, name) else { return false };
    let theirs = state.members[from];
    let connected = theirs.senders[member].is_some_and(|s| s.name == name);
    if theirs.server != Server::Primary || !connected {
        return false;
    }
    if me.at == theirs.at || !state.covers(theirs.at, me.at) {
        return false;
    }
    let lsn = me.at.lsn + 1;
    state.members[member].at = state.normal(At { branch: theirs.at.branch, lsn });
    if let Some(sender) = &mut state.members[from].senders[member] {
        sender.flush = lsn;
    }
    stream_on(documents, state, member);
    true
}

/// A client's commit is written and flushed on the primary, and waits.
pub fn write(state: &mut State, member: usize) -> bool {
    let me = state.members[member];
    if me.server != Server::Primary || !me.open || state.left.commits == 0 {
        return false;
    }
    let Some(free) = state.commits.iter().position(Option::is_none) else { return false };
    let at = At { lsn: me.at.lsn + 1, ..me.at };
    state.left.commits -= 1;
    state.members[member].at = at;
    // Nobody waits where the checkpointer has not said so, or the list is empty.
    let waits = me.waits;
    let commit = Commit { at, waits, acknowledged: !waits, read: !waits };
    state.commits[free] = Some(commit);
    true
}

/// A waiting backend hears that its commit is released.
pub fn acknowledge(documents: &Documents, state: &mut State, number: usize) -> bool {
    let Some(commit) = state.commits[number].filter(|c| c.waits) else { return false };
    let Some(writer) = writer(state, commit.at) else { return false };
    let primary = &state.members[writer];
    let nobody_asked = primary.waits && primary.names == Rule::Empty;
    if !nobody_asked && !releases(documents, primary, commit.at.lsn) {
        return false;
    }
    let done = Commit { waits: false, acknowledged: true, read: true, ..commit };
    state.commits[number] = Some(done);
    true
}

/// Returns the running primary that writes the branch of `at`.
pub fn writer(state: &State, at: At) -> Option<usize> {
    (0..MEMBERS).find(|m| {
        let member = &state.members[*m];
        member.server == Server::Primary && member.at.branch == at.branch
    })
}

/// A walsender loads the names that stand in its primary's file now.
pub fn reload(state: &mut State, primary: usize, of: usize) -> bool {
    let names = state.members[primary].names;
    match &mut state.members[primary].senders[of] {
        Some(sender) if sender.rule != names => {
            sender.rule = names;
            true
        }
        Some(_) | None => false,
    }
}

/// The checkpointer of a started primary says whether backends wait.
pub fn checkpointer(state: &mut State, member: usize) -> bool {
    let me = &mut state.members[member];
    let late = me.server == Server::Primary && !me.waits;
    me.waits |= late;
    late
}

/// Every process of a server ends. A commit that waits is not acknowledged any more, and is there.
pub fn end(state: &mut State, member: usize) {
    let me = state.members[member];
    for commit in state.commits.iter_mut().flatten() {
        let own = me.server == Server::Primary && commit.at.branch == me.at.branch;
        commit.waits &= !own;
    }
    let me = &mut state.members[member];
    me.deaths += u8::from(me.server == Server::Primary);
    me.server = Server::Down;
    me.open = false;
    me.waits = false;
    me.receiver = None;
    me.senders = [None; MEMBERS];
    me.exited = true;
    me.opened = None;
    me.confirmed = None;
    if !matches!(me.step, Step::Fetch | Step::Copy) {
        me.step = Step::None;
    }
}

/// Starts a server, as far as its keeper is concerned.
pub fn start(state: &mut State, member: usize, server: Server) {
    let me = &mut state.members[member];
    me.server = server;
    me.exited = false;
    me.scanned = false;
    me.started_sealed = false;
    me.streamed = None;
    me.opened = None;
    me.confirmed = None;
    me.known = Known::Impossible;
    me.names = Rule::Nobody;
    me.open = false;
    // A standby's sessions show the list that stands in its file; its checkpointer has long looked when it is promoted.
    me.waits = server == Server::Standby;
}

/// The keeper's process ends and another one begins: what it only remembered is gone.
pub fn forget(state: &mut State, member: usize) {
    let me = &mut state.members[member];
    me.step = Step::None;
    me.exited = false;
    me.seal = None;
    me.scanned = false;
    me.streamed = None;
    me.started_sealed = false;
    me.opened = None;
    me.confirmed = None;
    me.known = Known::Unproven;
    me.right = false;
}

/// Returns whether data may be mixed, so that nothing may start on it.
pub fn is_mixed(me: &Member) -> bool {
    matches!(me.marker, Marker::Rewinding | Marker::Copying)
}

/// The name of a voter, or the one of a member that may not vote.
pub fn name(epoch: u64, round: Option<u32>) -> Name {
    Name { epoch: epoch as u8, round: round.map(|r| r as u8) }
}
