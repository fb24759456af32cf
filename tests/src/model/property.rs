//! The promises, as far as this model shows them: written from docs/safety.md, without a line of the deciders or of their
//! check.

use stateright::Property;

use super::Model;
use super::documents::SmallCfg;
use super::keeper::source;
use super::postgres::priorities;
use super::state::{Broken, Commit, MEMBERS, Rule, Server, State};

/// A promise and whether a state keeps it.
pub struct Promise {
    pub name: &'static str,
    pub holds: fn(&Model, &State) -> bool,
}

const fn promise(name: &'static str, holds: fn(&Model, &State) -> bool) -> Promise {
    Promise { name, holds }
}

/// All of them.
pub const PROMISES: [Promise; 12] = [
    promise("I1 every acknowledged commit is in every later serving primary", i1),
    promise("I2 no two primaries can acknowledge", i2),
    promise("I3 the record covers what PostgreSQL enforces", i3),
    promise("I4 what was acknowledged is protected by a recorded Cfg", i4),
    promise("I5 promises last", i5),
    promise("I7 writes are guarded", |_, s| s.broken != Some(Broken::Guard)),
    promise("I8 names are never empty and of this epoch", i8),
    promise("I9 one timeline for each epoch, and a voter is a prefix", i9),
    promise("I10 no primary makes itself", i10),
    promise("I14 nothing that is needed is destroyed", |_, s| s.broken != Some(Broken::Destroyed)),
    promise("I16 what was read is in every later serving primary", i16),
    promise("the check agrees with the decider", |_, s| s.broken != Some(Broken::Refused)),
];

/// What must be reachable, or the model would show nothing.
const WITNESSES: [Promise; 4] = [
    promise("a commit is acknowledged after a failover", |_, s| {
        commits(s).any(|c| c.acknowledged && epoch_of(s, c) > 1)
    }),
    promise("a Cfg is replaced within an epoch", |m, s| {
        let cfgs = &m.documents.agreed.get(s.agreed).cfgs;
        cfgs.len() == 1 && cfgs[0].epoch == 1 && cfgs[0].id > 2
    }),
    promise("the old primary votes in the new epoch", |m, s| {
        let agreed = m.documents.agreed.get(s.agreed);
        agreed.epoch > 1
            && agreed.cfgs.iter().any(|c| c.epoch > 1 && c.voters & 1 == 1)
            && s.members[0].receiver.is_some_and(|n| n.epoch > 1 && n.round.is_some())
    }),
    promise("all Cfgs of the epoch before are dropped", |m, s| {
        m.documents.agreed.get(s.agreed).cfgs.iter().all(|c| c.epoch > 1)
    }),
];

/// Returns the promises and the witnesses for the checker.
pub fn all() -> Vec<Property<Model>> {
    let promises = PROMISES.iter().map(|p| Property::always(p.name, p.holds));
    let witnesses = WITNESSES.iter().map(|p| Property::sometimes(p.name, p.holds));
    promises.chain(witnesses).collect()
}

fn commits(state: &State) -> impl Iterator<Item = &Commit> {
    state.commits.iter().flatten()
}

fn epoch_of(state: &State, commit: &Commit) -> u8 {
    state.branches[commit.at.branch as usize].epoch
}

/// Whether every primary of a later epoch that serves holds `commit`.
fn later_primaries_hold(state: &State, commit: &Commit) -> bool {
    state.members.iter().all(|member| {
        let epoch = state.branches[member.at.branch as usize].epoch;
        let serves = member.server == Server::Primary && member.open;
        !(serves && epoch > epoch_of(state, commit)) || state.covers(member.at, commit.at)
    })
}

fn i1(_: &Model, state: &State) -> bool {
    commits(state).filter(|c| c.acknowledged).all(|c| later_primaries_hold(state, c))
}

fn i16(_: &Model, state: &State) -> bool {
    commits(state).filter(|c| c.read).all(|c| later_primaries_hold(state, c))
}

fn i2(model: &Model, state: &State) -> bool {
    let primaries = || (0..MEMBERS).filter(|m| state.members[*m].server == Server::Primary);
    let epoch = |m: usize| state.branches[state.members[m].at.branch as usize].epoch;
    primaries().all(|old| {
        let replaced = primaries().any(|new| epoch(new) > epoch(old));
        !replaced || !can_acknowledge(model, state, old)
    })
}

/// Whether a commit that is written now could gather its acknowledgements: enough of those whom the names call for stream
/// still.
fn can_acknowledge(model: &Model, state: &State, primary: usize) -> bool {
    let member = &state.members[primary];
    if member.names == Rule::Empty {
        return true;
    }
    let streams = |of: usize, name| {
        let receiver = state.members[of].receiver;
        receiver == Some(name) && source(&model.documents, state, name) == Some(primary)
    };
    let counted: Vec<Rule> = priorities(&model.documents, member)
        .into_iter()
        .filter(|(of, sender, priority)| *priority > 0 && streams(*of, sender.name))
        .map(|(_, sender, _)| sender.rule)
        .collect();
    counted.iter().any(|rule| match rule {
        Rule::Any(cfg) | Rule::First(cfg) => {
            let k = model.documents.cfgs.get((*cfg).into()).k;
            k > 0 && counted.len() >= k
        }
        Rule::Nobody | Rule::Empty => false,
    })
}

fn i3(model: &Model, state: &State) -> bool {
    let agreed = model.documents.agreed.get(state.agreed);
    let primary = &state.members[agreed.primary];
    if primary.server != Server::Primary || primary.epoch != agreed.epoch {
        return true;
    }
    let recorded = |rule: Rule| match rule {
        Rule::Nobody => true,
        Rule::Empty => false,
        Rule::Any(cfg) | Rule::First(cfg) => agreed.cfgs.iter().any(|c| c.number == cfg),
    };
    let loaded = primary.senders.iter().flatten().map(|sender| sender.rule);
    recorded(primary.names) && loaded.into_iter().all(recorded)
}

fn i4(model: &Model, state: &State) -> bool {
    let agreed = model.documents.agreed.get(state.agreed);
    let protects = |cfg: &SmallCfg, commit: &Commit| {
        let voters = (0..MEMBERS).filter(|m| cfg.voters >> m & 1 == 1);
        let holders = voters.filter(|m| state.holds(*m, commit.at)).count();
        state.holds(cfg.leader, commit.at) && holders >= cfg.k
    };
    let acknowledged = || commits(state).filter(|c| c.acknowledged);
    acknowledged().all(|commit| agreed.cfgs.iter().any(|cfg| protects(cfg, commit)))
}

fn i5(_: &Model, state: &State) -> bool {
    let kept = state.members.iter().zip(&state.given).all(|(m, given)| m.promise >= *given);
    let below = |m: &super::Member| m.receiver.is_some_and(|name| name.epoch < m.promise);
    kept && !state.members.iter().any(below)
}

fn i8(model: &Model, state: &State) -> bool {
    state.members.iter().filter(|m| m.server != Server::Down).all(|member| {
        let own = |rule: Rule| match rule {
            Rule::Nobody => true,
            Rule::Empty => false,
            Rule::Any(cfg) | Rule::First(cfg) => {
                model.documents.cfgs.get(cfg.into()).epoch.0 == u64::from(member.epoch)
            }
        };
        own(member.names) && member.senders.iter().flatten().all(|s| own(s.rule))
    })
}

fn i9(model: &Model, state: &State) -> bool {
    let named: Vec<u8> =
        state.branches.iter().map(|b| b.timeline).filter(|timeline| *timeline > 0).collect();
    let distinct = named.iter().enumerate().all(|(i, t)| !named[i + 1..].contains(t));
    let prefix = state.members.iter().all(|member| {
        let Some(name) = member.receiver.filter(|name| name.round.is_some()) else { return true };
        let Some(from) = source(&model.documents, state, name) else { return true };
        let primary = &state.members[from];
        let leads = primary.server == Server::Primary
            && state.branches[primary.at.branch as usize].epoch == name.epoch;
        !leads || state.covers(primary.at, member.at)
    });
    distinct && prefix
}

fn i10(model: &Model, state: &State) -> bool {
    let agreed = model.documents.agreed.get(state.agreed);
    let made = state.members.iter().enumerate().all(|(i, member)| {
        let epoch = state.branches[member.at.branch as usize].epoch;
        let serves = member.server == Server::Primary && member.open;
        !serves || agreed.primaries.get(&epoch) == Some(&i) && epoch == member.epoch
    });
    made && state.broken != Some(Broken::SelfMade)
}

#[cfg(test)]
mod tests {
    use super::super::run::SHORT;
    use super::super::state::{At, Branch};
    use super::*;

    /// Returns the first words of the promises that `state` breaks.
    fn broken(model: &Model, state: &State) -> Vec<&'static str> {
        let broken = PROMISES.iter().filter(|promise| !(promise.holds)(model, state));
        broken.filter_map(|promise| promise.name.split(' ').next()).collect()
    }

    fn planted(plant: impl FnOnce(&Model, &mut State)) -> Vec<&'static str> {
        let model = Model::new(SHORT, None);
        let mut state = model.first();
        assert_eq!(broken(&model, &state), Vec::<&str>::new());
        plant(&model, &mut state);
        broken(&model, &state)
    }

    fn commit(acknowledged: bool, read: bool) -> Option<Commit> {
        Some(Commit { at: At { branch: 0, lsn: 2 }, waits: false, acknowledged, read })
    }

    /// b is the primary of epoch 2 without the record after the first one.
    fn promote(state: &mut State) {
        state.branches[1] = Branch { timeline: 2, epoch: 2, parent: 0, fork: 1 };
        let b = &mut state.members[1];
        (b.at, b.epoch, b.server, b.open) = (At { branch: 1, lsn: 2 }, 2, Server::Primary, true);
        b.receiver = None;
    }

    #[test]
    fn a_lost_commit_is_found_whether_it_was_acknowledged_or_only_read() {
        let lost = |acknowledged| {
            planted(move |_, state| {
                promote(state);
                state.commits[0] = commit(acknowledged, true);
            })
        };
        assert!(lost(true).contains(&"I1") && lost(true).contains(&"I16"));
        assert!(!lost(false).contains(&"I1") && lost(false).contains(&"I16"));
    }

    #[test]
    fn a_second_primary_is_found_while_the_first_one_is_heard() {
        assert!(planted(|_, state| promote(state)).contains(&"I2"));
        let sealed = planted(|_, state| {
            promote(state);
            state.members[2].receiver = None;
        });
        assert!(!sealed.contains(&"I2"), "{sealed:?}");
    }

    #[test]
    fn names_that_nobody_recorded_are_found() {
        let other = |model: &Model| {
            let mut cfg = model.documents.cfgs.get(0).clone();
            cfg.id = proto::CfgId(9);
            Rule::Any(model.documents.cfg(&cfg))
        };
        assert_eq!(planted(|model, state| state.members[0].names = other(model)), ["I3"]);
        let loaded = planted(|model, state| {
            state.members[0].senders[1].as_mut().unwrap().rule = other(model);
        });
        assert_eq!(loaded, ["I3"]);
        assert_eq!(planted(|_, state| state.members[1].names = Rule::Empty), ["I8"]);
    }

    #[test]
    fn an_acknowledged_commit_that_no_voter_holds_is_found() {
        let found = planted(|_, state| {
            state.members[0].at.lsn = 2;
            state.commits[0] = commit(true, true);
        });
        assert_eq!(found, ["I4"]);
    }

    #[test]
    fn a_promise_that_is_forgotten_or_received_below_is_found() {
        assert_eq!(planted(|_, state| state.given[1] = 2), ["I5"]);
        assert_eq!(planted(|_, state| state.members[1].promise = 2), ["I5"]);
    }

    #[test]
    fn a_timeline_used_twice_and_a_voter_past_the_fork_are_found() {
        let twice = planted(|_, state| {
            state.branches[1] = Branch { timeline: 1, epoch: 2, parent: 0, fork: 1 };
        });
        assert_eq!(twice, ["I9"]);
        assert_eq!(planted(|_, state| state.members[1].at.lsn = 2), ["I9"]);
    }

    #[test]
    fn a_primary_that_no_state_named_is_found() {
        let found = planted(|_, state| {
            let b = &mut state.members[1];
            (b.server, b.open, b.receiver) = (Server::Primary, true, None);
        });
        assert!(found.contains(&"I10"), "{found:?}");
    }

    #[test]
    fn what_a_single_step_breaks_is_found() {
        for (broken, promise) in [
            (Broken::Guard, "I7"),
            (Broken::Destroyed, "I14"),
            (Broken::SelfMade, "I10"),
            (Broken::Refused, "the"),
        ] {
            assert_eq!(planted(|_, state| state.breaks(broken)), [promise]);
        }
    }
}
