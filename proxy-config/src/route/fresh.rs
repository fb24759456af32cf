//! Who may answer reads that must see the latest acknowledged write.
//!
//! The rule: the open primary; and a standby only while every set of members that can acknowledge a commit contains it,
//! in every Cfg on record, and commits wait until it has *replayed* them (`remote_apply`, by the spec and by the primary's
//! own word), and its keeper says that it has replayed all that was acknowledged before that became so.
//!
//! It holds as long as the state is the one that was read. Who has not heard of a later one may be sent to a member of
//! the epoch before, until `lease_ttl` has passed: reads that rule this out too are another promise (I6).

use std::collections::BTreeSet;
use std::time::Duration;

use proto::{ClusterState, MemberName, Moment};

use super::{Answer, Known};

/// Three of a keeper's answers: one that is lost changes nothing.
const ANSWERS_COUNT_FOR: Duration = Duration::from_secs(3);

/// Returns the members whose answers are fresh.
pub(super) fn members(
    known: &Known<'_>,
    state: &ClusterState,
    now: Moment,
) -> impl Iterator<Item = MemberName> {
    let mut members = BTreeSet::new();
    if let Some(primary) = state.writable_primary() {
        let says = |member: &MemberName, what: fn(&Answer) -> bool| {
            let answer = known.answers.get(member);
            answer.is_some_and(|a| now.since(a.asked) <= ANSWERS_COUNT_FOR && what(a))
        };
        members.insert(primary.clone());
        if known.spec.waits_for_replay() && says(primary, |a| a.remote_apply) {
            let standbys = state.members.keys().filter(|m| {
                let common = known.spec.member(m).pool.is_none();
                *m != primary && common && state.always_acknowledges(m) && says(m, |a| a.fresh)
            });
            members.extend(standbys.cloned());
        }
    }
    members.into_iter()
}
