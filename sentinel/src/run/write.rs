//! The leader's transactions.
//!
//! The one rule: each is guarded by the leadership and by the revision of the state that it was
//! decided on (I7).

use proto::document::encode;
use proto::explanation::Explanation;
use store::election::Leadership;
use store::keys::Keys;
use store::{Guard, Operation, Txn};

use crate::observe::World;
use crate::plan::{HistoryWrite, Verdict};

/// Returns the transaction that does what was decided on `world`; `None` where that is to wait.
pub(super) fn decided(
    keys: &Keys,
    leadership: &Leadership,
    world: &World,
    verdict: &Verdict,
) -> Option<Txn> {
    let state = keys.state();
    let mut when = vec![leadership.guard.clone(), unchanged(&state, world.state_revision)];
    let mut then = Vec::new();
    match verdict {
        Verdict::Wait(_) => return None,
        Verdict::Change { next, history, .. } => {
            let value = encode(&**next).into_bytes();
            then.push(Operation::Put { key: state, value, lease: None });
            then.extend(history.iter().map(|write| record(keys, write)));
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

/// Returns the transaction that puts the leader's reason down; it goes with the leader's lease.
pub(super) fn explanation(keys: &Keys, leadership: &Leadership, explanation: &Explanation) -> Txn {
    let put = Operation::Put {
        key: keys.explanation(),
        value: encode(explanation).into_bytes(),
        lease: Some(leadership.lease),
    };
    Txn { when: vec![leadership.guard.clone()], then: vec![put] }
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
