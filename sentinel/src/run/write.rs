//! The leader's transactions.
//!
//! The one rule: each is guarded by the leadership and by the revision of the state that it was
//! decided on (I7).

use proto::document::encode;
use proto::explanation::Explanation;
use proto::{ClusterState, Request};
use store::keys::Keys;
use store::{Guard, LeaseId, Operation, Txn};

use crate::observe::{Stored, World};
use crate::plan::{HistoryWrite, Verdict};

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

/// Returns the keys of the requests that `next` answers and the present state does not, with their revisions.
fn answered(keys: &Keys, world: &World, next: &ClusterState) -> Vec<(String, i64)> {
    let is_new = |request: &Request| {
        let known =
            matches!(&world.state, Stored::Known(state) if state.request(&request.id).is_some());
        !known && next.request(&request.id).is_some()
    };
    let new = world.seen.requests.iter().filter(|(_, request)| is_new(request));
    new.filter_map(|(kind, _)| Some((keys.request(*kind), *world.request_revisions.get(kind)?)))
        .collect()
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
