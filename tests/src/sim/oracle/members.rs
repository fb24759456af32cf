//! Members as they stand: I3, I5, I8, I9, I10, I14, I17, I19.

use keeper::member_files::MemberFiles;
use proto::cfg::{NOBODY, wire_name};
use proto::{Cfg, ClusterState, Epoch, Lsn};
use proxy_config::route::Routes;

use super::{Sign, holders, planned};
use crate::sim::executor::{Micros, Node, Sim, micros};
use crate::sim::postgres::{Phase, Rule, Server};
use crate::sim::wal::{At, BranchId};
use crate::sim::world::World;

type Problem = (&'static str, String);

impl Sim {
    /// Looks at one member after something of it has changed.
    pub fn oracle_look(&self, member: usize) {
        let (problems, opened) = self.with(|w| {
            if newly_serves(w, member) {
                gather_signs(w);
            }
            let Some(server) = &w.members[member].server else { return (Vec::new(), None) };
            let mut problems = names(w, member, server);
            if server.phase == Phase::Primary {
                problems.extend(enforced(w, member, server));
            }
            let new = newly_serves(w, member);
            if new {
                problems.extend(self_made(w, member, server));
            }
            (problems, new.then_some((server.id, server.branch)))
        });
        if let Some((id, branch)) = opened {
            self.with(|w| w.oracle.opened.insert(id));
            self.trace(|| format!("member {member} lets clients in, branch {}", branch.0));
            self.judge_opening(member, branch);
        }
        for (invariant, text) in problems {
            self.violate(invariant, text);
        }
    }

    pub fn oracle_server_starts(&self, member: usize) {
        let (standby, closed) = self.with(|w| {
            let disk = &w.members[member].disk;
            let standby = disk.data.as_ref().is_some_and(|d| d.standby_signal);
            let access = disk.settings.as_ref().map(|s| s.access);
            (standby, access == Some(keeper::postgres::settings::Access::Closed))
        });
        self.trace(|| format!("member {member} starts, standby {standby}"));
        if !standby && !closed {
            self.violate("I10", format!("member {member} starts as a primary that is open"));
        }
    }

    /// A promotion has written its first record.
    pub fn oracle_branch(&self, member: usize, branch: BranchId) {
        let problem = self.with(|w| {
            let new = w.wal.branch(branch);
            w.wal.branches().filter(|(id, _)| *id != branch).find_map(|(_, other)| {
                if other.tli == new.tli {
                    return Some(format!("timeline {} is begun twice", new.tli));
                }
                (other.epoch == new.epoch).then(|| {
                    format!("epoch {} has timelines {} and {}", new.epoch, other.tli, new.tli)
                })
            })
        });
        let tli = self.with(|w| w.wal.branch(branch).tli);
        self.trace(|| format!("member {member} is out of recovery on timeline {tli}"));
        if let Some(problem) = problem {
            self.violate("I9", format!("member {member}: {problem}"));
        }
        self.oracle_look(member);
    }

    pub fn oracle_files(&self, member: usize, before: Option<&MemberFiles>, after: &MemberFiles) {
        let Some(before) = before else { return };
        let falls = after.promise < before.promise
            || after.epoch < before.epoch
            || after.state_number < before.state_number;
        if falls {
            self.violate("I5", format!("member {member}: {before:?} became {after:?}"));
        }
        if after.promise < after.epoch {
            self.violate("I5", format!("member {member}: epoch {} without a promise", after.epoch));
        }
        let lacks = self.with(|w| {
            let data = w.members[member].disk.data.as_ref().filter(|_| after.complete)?;
            data.needed.filter(|_| !data.is_consistent(&w.wal))
        });
        if let Some(needed) = lacks {
            let what = "counts as complete, and its pages need WAL up to";
            self.violate("I11", format!("member {member} {what} {}", needed.lsn));
        }
    }

    /// Data of this member is about to be overwritten or replaced.
    pub fn oracle_destroys(&self, member: usize) {
        self.oracle_rewinds(member);
        let problem = self.with(|w| {
            let m = &w.members[member];
            let files = m.disk.files.as_ref().filter(|_| m.disk.data.is_some())?;
            if files.complete {
                return Some("its data goes, and it counts as complete".to_owned());
            }
            let since = files.state_number;
            // A store that was set back holds an older one meanwhile: numbers do not rise all the time.
            let mut states = w.oracle.states.iter().rev().filter(|(_, s)| s.number >= since);
            let allowed = states.any(|(_, state)| may_go(state, member, w));
            (!allowed).then(|| "its data goes, and may be all that is left of a Cfg".to_owned())
        });
        if let Some(problem) = problem {
            self.violate("I14", format!("member {member}: {problem}"));
        }
    }

    /// A copy that ends at `at` takes the place of this member's data.
    pub fn oracle_replaces(&self, member: usize, at: At) {
        let problem = self.with(|w| {
            let data = w.members[member].disk.data.as_ref()?;
            w.oracle.acknowledged.iter().find_map(|(branch, lsn)| {
                let needed = At { branch: *branch, lsn: *lsn };
                let lost = w.wal.covers(data.at, needed) && !w.wal.covers(at, needed);
                lost.then(|| format!("its copy lacks acknowledged {lsn} of branch {}", branch.0))
            })
        });
        if let Some(problem) = problem {
            self.violate("I14", format!("member {member}: {problem}"));
        }
    }

    pub fn oracle_sign(&self, member: usize, sign: Option<(Micros, Lsn, Cfg)>) {
        let now = self.now();
        self.with(|w| match sign {
            None => drop(w.oracle.evidence.insert(member, now)),
            Some((begun, lsn, cfg)) => {
                let Some(branch) = w.members[member].server.as_ref().map(|s| s.branch) else {
                    return;
                };
                w.oracle.signs.push(Sign { member, begun, branch, lsn, cfg });
            }
        });
    }

    pub fn oracle_routes(&self, previous: Option<&Routes>, next: &Routes) {
        let lower = self.with(|w| {
            let lower = next.write.is_some() && next.epoch.0 < w.oracle.highest_routed;
            w.oracle.highest_routed = w.oracle.highest_routed.max(next.epoch.0);
            lower
        });
        if lower {
            let from = previous.map(|p| p.epoch);
            self.violate("I19", format!("writes go by epoch {}, before by {from:?}", next.epoch));
        }
    }

    /// Ten times a second: what changes by time alone.
    pub fn oracle_tick(&self) {
        for member in 0..self.with(|w| w.members.len()) {
            let paused = self.is_excused(member);
            let now = self.now();
            let problems = self.with(|w| {
                if paused {
                    w.oracle.excused_until.insert(member, now + 700_000);
                }
                gather_signs(w);
                let mut problems: Vec<Problem> = isolated(w, member, now).into_iter().collect();
                problems.extend(follower(w, member));
                problems
            });
            let stands =
                |w: &mut World| planned::serves(w, now).or_else(|| planned::writes(w, now));
            let unserved = self.with(stands).filter(|_| member == 0);
            let problems = problems.into_iter().chain(unserved);
            for (invariant, text) in problems {
                self.violate(invariant, text);
            }
        }
    }

    /// The bound holds while the fencer runs.
    fn is_excused(&self, member: usize) -> bool {
        let fencer = self.with(|w| w.members[member].fencer.as_ref().map(|f| f.proc));
        let node = self.node_is_paused(Node::Member(member));
        node || fencer.is_none_or(|proc| self.is_paused(proc) || !self.is_alive(proc))
    }
}

/// Whether a primary lets clients in that did not when it was last looked at.
fn newly_serves(w: &World, member: usize) -> bool {
    w.members[member].server.as_ref().is_some_and(|server| {
        let serves = server.phase == Phase::Primary && server.lets_clients_in();
        serves && !w.oracle.opened.contains(&server.id)
    })
}

/// I8: the list is never empty and never `*`, and names nobody of another epoch.
fn names(w: &World, member: usize, server: &Server) -> Vec<Problem> {
    let epoch = match server.phase {
        Phase::Primary => w.wal.branch(server.branch).epoch,
        _ => w.members[member].disk.files.as_ref().map_or(0, |f| f.epoch.0),
    };
    let mut problems = Vec::new();
    // A walsender that has read empty names releases nobody.
    let read = server.senders.values().map(|s| &s.rule).filter(|r| !w.oracle.alone || r.k > 0);
    let conf = Rule::parse(&server.conf.standby_names);
    let alone = w.oracle.acknowledges_alone(epoch) && conf.k == 0;
    for rule in read.chain(Some(&conf).filter(|_| !alone)) {
        if rule.names.is_empty() || rule.names.iter().any(|n| n == "*") || rule.k == 0 {
            problems.push(("I8", format!("member {member} waits for {rule:?}")));
        }
        let foreign =
            |n: &&String| *n != NOBODY && !w.members.iter().any(|m| is_name_of(n, &m.name, epoch));
        if let Some(name) = rule.names.iter().find(foreign) {
            problems.push(("I8", format!("member {member} of epoch {epoch} lists {name}")));
        }
    }
    problems
}

fn is_name_of(name: &str, member: &proto::MemberName, epoch: u64) -> bool {
    let plain = wire_name(member, Epoch(epoch), 0);
    let round = name.strip_prefix(&plain).map(|rest| rest.strip_prefix(".r").unwrap_or(rest));
    round.is_some_and(|round| round.bytes().all(|digit| digit.is_ascii_digit()))
}

/// I3: each walsender's own rule asks for at least what one recorded Cfg asks for.
fn enforced(w: &World, member: usize, server: &Server) -> Vec<Problem> {
    let Some(state) = w.oracle.state() else { return Vec::new() };
    let epoch = w.wal.branch(server.branch).epoch;
    let mut problems = Vec::new();
    if state.epoch.0 != epoch {
        return problems;
    }
    let alone = w.oracle.acknowledges_alone(epoch);
    if server.lets_clients_in() && !server.commits_wait() && !alone {
        problems.push(("I3", format!("member {member} is open and its backends do not wait")));
    }
    let recorded = w.oracle.recorded(epoch);
    for sender in server.senders.values().filter(|s| s.streaming && s.priority > 0) {
        if !alone && !recorded.iter().any(|cfg| is_within(&sender.rule, cfg)) {
            let rule = &sender.rule;
            problems
                .push(("I3", format!("walsender {} of {member} asks for {rule:?}", sender.name)));
        }
    }
    problems
}

fn is_within(rule: &Rule, cfg: &Cfg) -> bool {
    let known = |n: &String| n == NOBODY || cfg.voters.iter().any(|v| *n == cfg.wire_name(v));
    cfg.k > 0 && rule.k >= cfg.k && rule.names.iter().all(known)
}

/// I10: it opens by a state that named it after its start, or by a sign of its voters after it, and by no epoch below its
/// promise.
///
/// Voters that give a sign have promised nothing newer and receive from it: they acknowledge what it commits, and no epoch
/// begins without them.
fn self_made(w: &World, member: usize, server: &Server) -> Vec<Problem> {
    let name = &w.members[member].name;
    let epoch = w.wal.branch(server.branch).epoch;
    let promise = w.members[member].disk.files.as_ref().map_or(0, |f| f.promise.0);
    let mut problems = Vec::new();
    if promise > epoch {
        problems.push(("I10", format!("{name} opens epoch {epoch} and has promised {promise}")));
    }
    let mut until = Micros::MAX;
    let named = w.oracle.states.iter().rev().any(|(from, state)| {
        let held_after = until >= server.started;
        until = *from;
        held_after
            && state.sealing.is_none()
            && state.primary.as_ref() == Some(name)
            && state.epoch.0 == epoch
    });
    let remembered = w.oracle.remembered.as_ref().is_some_and(|state| {
        state.sealing.is_none() && state.primary.as_ref() == Some(name) && state.epoch.0 == epoch
    });
    let signed = w.oracle.evidence.get(&member).is_some_and(|at| *at >= server.started);
    if !named && !remembered && !signed {
        problems.push(("I10", format!("{name} opens epoch {epoch} that no state gave it")));
    }
    problems
}

/// I14: it stands in no Cfg, or the primary alone seals each.
fn may_go(state: &ClusterState, member: usize, w: &World) -> bool {
    let name = &w.members[member].name;
    let stands = state.cfgs.iter().any(|c| c.leader == *name || c.voters.contains(name));
    let primary = state.primary.as_ref();
    let alone = state.cfgs.iter().all(|c| {
        Some(&c.leader) == primary
            || c.voters.len() == c.k && primary.is_some_and(|p| c.voters.contains(p))
    });
    !stands || alone
}

/// Signs that k voters have given by now.
fn gather_signs(w: &mut World) {
    let signs = std::mem::take(&mut w.oracle.signs);
    for sign in signs {
        if holders(w, &sign.cfg, sign.branch, sign.lsn) >= sign.cfg.k {
            let known = w.oracle.evidence.entry(sign.member).or_default();
            *known = (*known).max(sign.begun);
        } else {
            w.oracle.signs.push(sign);
        }
    }
    let count = w.oracle.signs.len();
    w.oracle.signs.drain(..count.saturating_sub(50));
}

/// I17: a primary serves no longer than `lease_ttl` past the last moment at which its right counted.
pub(super) fn isolated(w: &World, member: usize, now: Micros) -> Option<Problem> {
    let server = w.members[member].server.as_ref()?;
    let serves = server.phase == Phase::Primary && server.lets_clients_in();
    let excused = w.oracle.excused_until.get(&member).is_some_and(|until| now < *until);
    let evidence = w.oracle.evidence.get(&member).copied().unwrap_or(0);
    let silent = now.saturating_sub(evidence.max(server.started));
    let bound = micros(w.spec.lease_ttl) * 102 / 100;
    (serves && !excused && silent > bound).then(|| {
        ("I17", format!("member {member} serves {:.1} s without a right", silent as f64 / 1e6))
    })
}

/// I9: whoever streams under a voter's name is a prefix of its primary.
fn follower(w: &World, member: usize) -> Option<Problem> {
    let server = w.members[member].server.as_ref().filter(|s| s.phase == Phase::Primary)?;
    let own = At { branch: server.branch, lsn: w.wal.end(server.branch) };
    server.senders.values().filter(|s| s.streaming && s.priority > 0).find_map(|sender| {
        let receiver = w.members[sender.member].server.as_ref()?.receiver.as_ref()?;
        if receiver.name != sender.name || !receiver.streaming {
            // The standby has left, and this end does not know.
            return None;
        }
        let data = w.members[sender.member].disk.data.as_ref()?;
        let strays = !w.wal.covers(own, w.wal.whole(data.at));
        strays
            .then(|| ("I9", format!("{} streams from {member} and is past its fork", sender.name)))
    })
}
