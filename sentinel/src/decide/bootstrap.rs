//! How a cluster begins: one founder runs initdb, and its system identifier is the cluster's for
//! ever.
//!
//! The one rule: a founder that has reported its system identifier is never replaced, and a data
//! directory that holds anything is never taken.

use std::collections::{BTreeMap, BTreeSet};

use proto::cfg::Cfg;
use proto::report::DataDirectory;
use proto::spec::Permission;
use proto::state::{Admitted, EpochRecord, RestartOrder};
use proto::{CfgId, ClusterSpec, ClusterState, Epoch, MemberName, Phase, StateNumber, Timeline};

use super::{Inputs, Step};
use crate::observe::{Condition, Observations};
use crate::plan::WaitingOn;
use crate::record;

/// There is a spec and no state yet.
pub(crate) fn create(spec: &ClusterSpec, seen: &Observations) -> Step {
    let founder = match founder(spec, seen) {
        Ok(founder) => founder,
        Err(waiting) => return Step::wait(waiting),
    };
    let why = format!("{founder} is to found the cluster");
    let state = ClusterState {
        number: StateNumber(1),
        etcd_cluster_id: seen.etcd_cluster_id.clone(),
        system_identifier: None,
        epoch: Epoch(0),
        phase: Phase::Founding { founder },
        primary: None,
        sealing: None,
        cfgs: Vec::new(),
        last_cfg: CfgId(0),
        timeline: Timeline(1),
        highest_timeline: Timeline(1),
        chosen: None,
        open_at_once: false,
        epochs: Vec::new(),
        members: BTreeMap::new(),
        restart: None,
        adopted: None,
        answered: None,
        requests: Vec::new(),
        orders: Default::default(),
    };
    Step::change(state, Vec::new(), why)
}

/// The founder that the spec names, else the first by name of the members with an empty data
/// directory that may be promoted.
fn founder(spec: &ClusterSpec, seen: &Observations) -> Result<MemberName, WaitingOn> {
    let is_empty = |name: &MemberName| {
        seen.members
            .get(name)
            .is_some_and(|r| r.data == DataDirectory::Empty && r.system_identifier.is_none())
    };
    match &spec.founder {
        Some(named) if is_empty(named) => Ok(named.clone()),
        Some(named) => Err(WaitingOn::NamedFounder { founder: named.clone() }),
        None => {
            // The founder becomes the first primary.
            let may = |name: &MemberName| spec.member(name).promote == Permission::Allowed;
            let fits = |name: &&MemberName| is_empty(name) && may(name);
            seen.members.keys().find(fits).cloned().ok_or(WaitingOn::EmptyMember)
        }
    }
}

/// Phase `Founding`.
pub(crate) fn found(inputs: &Inputs, founder: &MemberName) -> Step {
    let Some(report) = inputs.seen.members.get(founder) else {
        return replace(inputs, founder);
    };
    let Some(system_identifier) = report.system_identifier else {
        return Step::wait(WaitingOn::Initdb { founder: founder.clone() });
    };
    if report.data != DataDirectory::Present || !report.complete {
        return Step::wait(WaitingOn::Initdb { founder: founder.clone() });
    }
    let epoch = Epoch(1);
    let mut next = inputs.next();
    next.system_identifier = Some(system_identifier);
    next.epoch = epoch;
    next.phase = Phase::Restarting;
    next.primary = Some(founder.clone());
    next.last_cfg = CfgId(1);
    next.cfgs = vec![Cfg {
        id: CfgId(1),
        epoch,
        leader: founder.clone(),
        voters: Default::default(),
        k: 0,
        round: 0,
    }];
    next.open_at_once = true;
    next.epochs = vec![EpochRecord {
        epoch,
        timeline: next.timeline,
        primary: founder.clone(),
        parent: None,
        start_lsn: None,
        with_loss: false,
    }];
    let admitted = Admitted { incarnation: report.incarnation.clone(), floor: None };
    next.members.insert(founder.clone(), admitted);
    next.restart = Some(RestartOrder { member: founder.clone(), epoch, number: 1 });
    let history = record::founding(inputs, founder);
    let why = format!("{founder} founded the cluster with system identifier {system_identifier}");
    Step::change(next, history, why)
}

/// Returns the condition of this file, if it holds.
pub(crate) fn conditions(inputs: &Inputs) -> BTreeSet<Condition> {
    let away = match &inputs.state.phase {
        Phase::Founding { founder } if !inputs.seen.members.contains_key(founder) => Some(founder),
        Phase::Founding { .. }
        | Phase::Promoting
        | Phase::Restarting
        | Phase::Open
        | Phase::Switchover(_) => None,
    };
    away.into_iter().map(|founder| Condition::FounderAway { founder: founder.clone() }).collect()
}

/// The founder's lease lapsed before it reported a system identifier. It may have run initdb all the same, and would
/// be a stranger for ever once another has founded: in a stall of etcd all leases lapse together.
fn replace(inputs: &Inputs, gone: &MemberName) -> Step {
    let condition = Condition::FounderAway { founder: gone.clone() };
    let grace = inputs.patience_left(&condition, inputs.spec.isolation_grace);
    match founder(inputs.spec, inputs.seen) {
        Ok(other) if other != *gone => {
            if let Some(until) = grace {
                return Step::wait_until(WaitingOn::FounderReport { founder: gone.clone() }, until);
            }
            let mut next = inputs.next();
            let why = format!("{other} is to found the cluster: {gone} vanished before it did");
            next.phase = Phase::Founding { founder: other };
            Step::change(next, Vec::new(), why)
        }
        Ok(_) | Err(_) => Step::wait(WaitingOn::FounderReport { founder: gone.clone() }),
    }
}
