//! The leader's transactions.
//!
//! The one rule: each is guarded by the leadership and by the revision of the state that it was
//! decided on (I7).

use proto::document::encode;
use proto::explanation::Explanation;
use proto::topology::Topology;
use proto::{ClusterState, RequestId};
use store::keys::Keys;
use store::{Guard, LeaseId, Operation, Txn};

use crate::observe::{Stored, World};
use crate::plan::{HistoryWrite, Verdict, WaitingOn};

/// How many history records are kept. Every decision reads all of a cluster, so they must not grow without bound.
const RECORDS_KEPT: usize = 100;
/// How many go in one transaction: etcd refuses one of more than 128 operations.
const RECORDS_DROPPED_AT_ONCE: usize = 50;

/// Returns the transaction that does what was decided on `world`; `None` where that is to wait.
pub fn decided(keys: &Keys, leadership: &Guard, world: &World, verdict: &Verdict) -> Option<Txn> {
    let state = keys.state();
    let mut when = vec![leadership.clone(), unchanged(&state, world.state_revision)];
    let mut then = Vec::new();
    match verdict {
        Verdict::Wait(_) => return None,
        Verdict::Change { next, history, .. } => {
            let value = encode(&**next).into_bytes();
            then.push(Operation::Put { key: state, value, lease: None });
            then.extend(history.iter().map(|write| record(keys, write)));
            let written: Vec<String> =
                history.iter().map(|write| keys.history(write.epoch, write.restart)).collect();
            let outdated = outdated(&world.records, &written).into_iter();
            then.extend(outdated.map(|key| Operation::Delete { key }));
            then.extend(topology(keys, world, next));
            for (key, revision) in answered(keys, world, next) {
                // One that was withdrawn or has lapsed meanwhile is not begun.
                when.push(Guard::ModRevision(key.clone(), revision));
                then.push(Operation::Delete { key });
            }
        }
        Verdict::Record { history, .. } => {
            when.extend(history.iter().map(|write| {
                unchanged(&keys.history(write.epoch, write.restart), world.history_revision)
            }));
            then.extend(history.iter().map(|write| record(keys, write)));
        }
    }
    Some(Txn { when, then })
}

/// Returns the transaction that tells clients what has changed without a change of the state, such as a standby that
/// streams again. While no primary serves nothing is told but by changes: it would hold up a failover.
pub(super) fn news(
    keys: &Keys,
    leadership: &Guard,
    world: &World,
    verdict: &Verdict,
) -> Option<Txn> {
    use WaitingOn::{OtherStore, SetBack};
    let Stored::Known(state) = &world.state else { return None };
    if !state.is_open() || matches!(verdict, Verdict::Wait(OtherStore { .. } | SetBack { .. })) {
        return None;
    }
    let put = topology(keys, world, state)?;
    let when = vec![leadership.clone(), unchanged(&keys.state(), world.state_revision)];
    Some(Txn { when, then: vec![put] })
}

/// Returns what puts the topology of `state`, where it is not what clients were told last.
fn topology(keys: &Keys, world: &World, state: &ClusterState) -> Option<Operation> {
    let told = match &world.topology {
        Stored::Known(told) => Some(told),
        Stored::Absent | Stored::Malformed(_) => None,
        Stored::Newer(_) => return None,
    };
    let now = Topology::of(state, &world.seen.members, told);
    let value = encode(&now).into_bytes();
    (told != Some(&now)).then(|| Operation::Put { key: keys.topology(), value, lease: None })
}

/// Returns the keys of the requests and scheduled switchovers that `next` answers and the present state does not, with
/// their revisions.
fn answered(keys: &Keys, world: &World, next: &ClusterState) -> Vec<(String, i64)> {
    let is_new = |id: &RequestId| {
        let known = matches!(&world.state, Stored::Known(state) if state.request(id).is_some());
        !known && next.request(id).is_some()
    };
    let new = world.seen.requests.iter().filter(|(_, request)| is_new(&request.id));
    let asked = new
        .filter_map(|(kind, _)| Some((keys.request(*kind), *world.request_revisions.get(kind)?)));
    let begun = world.scheduled_revisions.iter().filter(|(id, _)| is_new(id));
    asked.chain(begun.map(|(id, revision)| (keys.scheduled(id), *revision))).collect()
}

/// Returns the transaction that puts the leader's reason down; it goes with the leader's lease.
pub(super) fn explanation(
    keys: &Keys,
    (leadership, lease): (&Guard, LeaseId),
    explanation: &Explanation,
) -> Txn {
    let put = Operation::Put {
        key: keys.explanation(),
        value: encode(explanation).into_bytes(),
        lease: Some(lease),
    };
    Txn { when: vec![leadership.clone()], then: vec![put] }
}

/// Returns which of `records`, oldest first, go when those of `written` are put. Nothing goes unless one is begun.
fn outdated(records: &[String], written: &[String]) -> Vec<String> {
    let begun = written.iter().filter(|key| !records.contains(key)).count();
    if begun == 0 {
        return Vec::new();
    }
    let surplus = (records.len() + begun).saturating_sub(RECORDS_KEPT);
    let old = records.iter().filter(|key| !written.contains(key));
    old.take(surplus.min(RECORDS_DROPPED_AT_ONCE)).cloned().collect()
}

fn record(keys: &Keys, write: &HistoryWrite) -> Operation {
    let key = keys.history(write.epoch, write.restart);
    Operation::Put { key, value: encode(&write.record).into_bytes(), lease: None }
}

fn unchanged(key: &str, revision: Option<i64>) -> Guard {
    match revision {
        Some(revision) => Guard::ModRevision(key.to_owned(), revision),
        None => Guard::Absent(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: u64) -> Vec<String> {
        let keys = Keys::of(&"c1".parse().expect("a name"));
        (1..=count).map(|epoch| keys.history(proto::Epoch(epoch), 0)).collect()
    }

    #[test]
    fn the_oldest_records_go_when_a_new_one_is_begun() {
        let all = records(101);
        let (kept, new) = (all[..100].to_vec(), all[100..].to_vec());
        assert_eq!(outdated(&kept, &new), all[..1]);
        assert_eq!(outdated(&kept[..99], &new), [""; 0], "there is room");
        assert_eq!(outdated(&all, &all[100..]), [""; 0], "none is begun");
        assert_eq!(outdated(&records(1000), &["new".into()]).len(), 50, "a part each time");
    }

    #[test]
    fn a_record_that_is_being_ended_stays() {
        let all = records(100);
        let written = [all[0].clone(), "new".into()];
        assert_eq!(outdated(&all, &written), all[1..2]);
    }
}
