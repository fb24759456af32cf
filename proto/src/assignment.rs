//! What the agreed state asks of one member. Derived, never stored: one reading of the state for all.

use crate::{Cfg, ClusterState, Epoch, Lsn, MemberName, Phase, Timeline, WalPosition};

/// The part of one member in the agreed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assignment {
    /// The state does not name this member yet: report, and start nothing.
    Wait,
    /// Run initdb and report the system identifier.
    Found,
    /// Stop receiving, promise `sealing`, report the position.
    Seal { sealing: Epoch },
    /// Be the primary of `epoch`.
    Lead(Lead),
    /// Stop being the primary of `epoch`, promise the next one and seal for it.
    HandOver(HandOver),
    /// Stream from the primary of `epoch`.
    Follow(Follow),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    pub epoch: Epoch,
    pub timeline: Timeline,
    /// The highest timeline that may have a history file before the promotion is `timeline` - 1.
    pub cfgs: Vec<Cfg>,
    pub open_at_once: bool,
    pub start_lsn: Option<Lsn>,
    /// The number of the order to start PostgreSQL again in this epoch, if there is one for this epoch.
    pub restart: Option<u64>,
    pub phase: Phase,
}

impl Lead {
    /// Returns the Cfg whose names this primary has to enforce: the newest of its own epoch.
    pub fn own_cfg(&self) -> Option<&Cfg> {
        self.cfgs.iter().rev().find(|cfg| cfg.epoch == self.epoch)
    }
}

/// The primary's part in a switchover, once it is past recall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// The epoch to promise and to seal for.
    pub sealing: Epoch,
    /// The names under which the voters and the target stream: the stop waits for nobody else.
    pub waits_for: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    pub epoch: Epoch,
    pub primary: MemberName,
    pub timeline: Timeline,
    /// Who holds more than this must not follow under a voter's name.
    pub chosen: Option<WalPosition>,
    pub start_lsn: Option<Lsn>,
    /// The round of the names in force, for `Cfg::wire_name`.
    pub round: u32,
}

/// Returns what `state` asks of `member`.
pub fn assignment(state: &ClusterState, member: &MemberName) -> Assignment {
    if let Phase::Founding { founder } = &state.phase {
        return if founder == member { Assignment::Found } else { Assignment::Wait };
    }
    let Some(primary) = &state.primary else { return Assignment::Wait };
    if !state.members.contains_key(member) {
        return Assignment::Wait;
    }
    if let Some(sealing) = state.sealing {
        return Assignment::Seal { sealing };
    }
    if primary == member
        && let Some(switchover) = state.handing_over()
    {
        return Assignment::HandOver(hand_over(state, &switchover.target));
    }
    if primary == member {
        let restart =
            state.restart.as_ref().filter(|r| r.epoch == state.epoch && r.member == *member);
        return Assignment::Lead(Lead {
            epoch: state.epoch,
            timeline: state.timeline,
            cfgs: state.cfgs.clone(),
            open_at_once: state.open_at_once,
            start_lsn: state.epoch_record(state.epoch).and_then(|r| r.start_lsn),
            restart: restart.map(|r| r.number),
            phase: state.phase.clone(),
        });
    }
    let in_force = state.newest_cfg().filter(|c| c.epoch == state.epoch);
    Assignment::Follow(Follow {
        epoch: state.epoch,
        primary: primary.clone(),
        timeline: state.timeline,
        chosen: state.chosen,
        start_lsn: state.epoch_record(state.epoch).and_then(|r| r.start_lsn),
        round: in_force.map_or(0, |c| c.round),
    })
}

fn hand_over(state: &ClusterState, target: &MemberName) -> HandOver {
    let in_force = state.newest_cfg().filter(|c| c.epoch == state.epoch);
    let names = |cfg: &Cfg| {
        let members = cfg.voters.iter().chain([target]);
        members.map(|m| cfg.wire_name(m)).collect()
    };
    HandOver { sealing: state.epoch.next(), waits_for: in_force.map_or_else(Vec::new, names) }
}
