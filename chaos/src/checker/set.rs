//! Fresh ids: none that is there was never written, none that was read is gone, and no read misses what was acknowledged
//! before it was asked. (What was acknowledged and is not there is `verdict`'s.)

use std::collections::{BTreeMap, BTreeSet};

use proto::{MemberName, Moment};

use super::{Finding, Kind, Operation, Outcome, Record, What};

/// Checks the ids of a record.
pub fn check(record: &Record) -> Vec<Finding> {
    let mut found = phantoms(record);
    found.extend(vanished(record));
    found.extend(stale(record));
    found
}

fn phantoms(record: &Record) -> Vec<Finding> {
    let told = &record.inserts;
    let refused: BTreeSet<i64> = told.refused_ids.iter().copied().collect();
    let mut found = Vec::new();
    for (member, held) in &record.members {
        for id in &held.ids {
            let ranges = &told.tried;
            if !ranges.iter().any(|tried| tried.contains(id)) {
                let text = format!("{member} holds {id}, which nobody wrote");
                found.push(Finding::new(Kind::Phantom, text));
            } else if refused.contains(id) {
                let text = format!("{member} holds {id}, which was refused");
                found.push(Finding::new(Kind::Phantom, text));
            }
        }
    }
    found
}

/// Every id that any read returned is on every member, told once with the first read of it.
fn vanished(record: &Record) -> Vec<Finding> {
    let mut first_read: BTreeMap<i64, (u32, Moment)> = BTreeMap::new();
    for (operation, ids) in reads(&record.operations) {
        for id in ids {
            first_read.entry(*id).or_insert((operation.client, operation.invoked));
        }
    }
    let missing = |(id, (client, at)): (i64, (u32, Moment))| {
        let gone: Vec<&str> = record
            .members
            .iter()
            .filter(|(_, held)| !held.ids.contains(&id))
            .map(|(member, _)| MemberName::as_str(member))
            .collect();
        let text =
            format!("client {client} read {id} at {at:?}, and it is not on {}", gone.join(", "));
        (!gone.is_empty()).then(|| Finding::new(Kind::Vanished, text))
    };
    first_read.into_iter().filter_map(missing).collect()
}

/// A read of the highest ids shows each id above its lowest that was acknowledged before it was asked for.
fn stale(record: &Record) -> Vec<Finding> {
    let acknowledged: BTreeMap<i64, Moment> =
        record.inserts.acknowledged.iter().map(|ack| (ack.id, ack.acked)).collect();
    let mut found = Vec::new();
    for (operation, ids) in reads(&record.operations) {
        let lowest = ids.iter().min().copied().unwrap_or(i64::MIN);
        let shown: BTreeSet<i64> = ids.iter().copied().collect();
        let Some(tried) = record.inserts.tried.iter().find(|tried| tried.contains(&lowest)) else {
            continue;
        };
        // Writers take ids in turn, so what a read could miss lies close above what it shows.
        let later = acknowledged.range(lowest..tried.end).take(ids.len() + LOOK_AHEAD);
        let missed = later.filter(|(id, at)| **at < operation.invoked && !shown.contains(id));
        if let Some((id, at)) = missed.max_by_key(|(id, _)| **id) {
            let late = operation.invoked.since(*at).as_secs_f64() * 1e3;
            let text = format!(
                "client {} did not read {id}, acknowledged {late:.1} ms before",
                operation.client
            );
            found.push(Finding::new(Kind::Stale, text));
        }
    }
    found
}

/// So far above what it shows a read is compared; the cost of a read stays bounded by it.
const LOOK_AHEAD: usize = 200;

fn reads(operations: &[Operation]) -> impl Iterator<Item = (&Operation, &Vec<i64>)> {
    operations.iter().filter_map(|operation| match &operation.what {
        What::Newest(ids) if operation.outcome == Outcome::Done => Some((operation, ids)),
        What::Newest(_) | What::Next { .. } | What::Lists(_) | What::Transfer | What::Total(_) => {
            None
        }
    })
}
