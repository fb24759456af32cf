//! What a switchover needs beside the leader's consent: by what the keepers of the two members say when they are asked.
//!
//! The one rule: what a keeper has not said is not known, and is not taken for good.

use std::fmt;

use proto::MemberName;
use proto::report::NEAR;
use proto::status::{Prepared, Space};
use serde::Serialize;

use crate::status::Answers;
use crate::table::bytes;

/// One thing that was looked at. Field names are scripted against: they stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `caught-up`, `rewind-back`, `slots` or `disk`.
    check: &'static str,
    member: MemberName,
    /// Null where it is not known.
    ok: Option<bool>,
    detail: String,
}

/// Returns the checks of a change from `from` to `to`, in a cluster of `members`. `left` is what the target has left to
/// receive and to replay, in bytes.
pub fn checks(
    (from, to): (&MemberName, &MemberName),
    members: &[MemberName],
    left: Option<u64>,
    answers: &Answers,
) -> Vec<Check> {
    let prepared = |member| answers.get(member).map(|a| a.prepared.clone()).unwrap_or_default();
    let (before, next) = (prepared(from), prepared(to));
    let mut all = vec![caught_up(to, left), rewind_back(from, &before), slots(to, members, &next)];
    all.extend(next.disks.iter().map(|(name, space)| disk(to, name, space)));
    if next.disks.is_empty() {
        let detail = "its keeper has not looked at its disks, or does not answer".to_owned();
        all.push(Check { check: "disk", member: to.clone(), ok: None, detail });
    }
    all
}

fn caught_up(member: &MemberName, left: Option<u64>) -> Check {
    let detail = match left {
        Some(left) => format!("it has {} left to receive and to replay", bytes(left)),
        None => {
            "the primary's keeper does not say what it has left to receive and to replay".into()
        }
    };
    let ok = left.map(|left| left <= NEAR);
    Check { check: "caught-up", member: member.clone(), ok, detail }
}

/// The old primary follows without a rewind. Where the new one dies before it does, it may need one.
fn rewind_back(member: &MemberName, prepared: &Prepared) -> Check {
    let detail = match prepared.rewindable {
        Some(true) => "should it diverge, pg_rewind takes it back",
        Some(false) => {
            "should it diverge, it is copied anew: neither data checksums nor wal_log_hints are in force there"
        }
        None => {
            "its keeper has not looked whether pg_rewind could take it back, or does not answer"
        }
    };
    Check {
        check: "rewind-back",
        member: member.clone(),
        ok: prepared.rewindable,
        detail: detail.into(),
    }
}

fn slots(member: &MemberName, members: &[MemberName], prepared: &Prepared) -> Check {
    let others = members.iter().filter(|m| *m != member);
    let missing = prepared.slots.as_ref().map(|slots| {
        let missing = others.filter(|m| !slots.contains(m)).map(MemberName::as_str);
        missing.collect::<Vec<_>>().join(", ")
    });
    let detail = match missing.as_deref() {
        Some("") => "it has a replication slot for every other member".to_owned(),
        Some(missing) => format!("it has no replication slot yet for {missing}"),
        None => "its keeper has not looked at its replication slots, or does not answer".to_owned(),
    };
    let ok = missing.map(|missing| missing.is_empty());
    Check { check: "slots", member: member.clone(), ok, detail }
}

/// The new primary writes WAL at once, and keeps it for those who follow.
fn disk(member: &MemberName, name: &str, space: &Space) -> Check {
    let Space { available, size, read_only } = *space;
    let free =
        format!("{} of {} are free on the disk of its {name}", bytes(available), bytes(size));
    let (ok, detail) = match (read_only, is_roomy(space)) {
        (true, _) => (false, format!("the disk of its {name} is mounted read-only")),
        (false, true) => (true, free),
        (false, false) => (false, format!("only {free}")),
    };
    Check { check: "disk", member: member.clone(), ok: Some(ok), detail }
}

/// As its keeper judges: see `status`, which tells of a disk that is nearly full.
fn is_roomy(space: &Space) -> bool {
    space.available >= (space.size / 20).min(4 << 30)
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.ok {
            Some(true) => "ok",
            Some(false) => "NOT OK",
            None => "not known",
        };
        write!(f, "{} of {}: {verdict}, {}", self.check, self.member, self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> MemberName {
        name.parse().unwrap()
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_not_known_is_not_good() {
        let members = ["a", "b", "c"].map(name);
        let unknown = checks((&members[0], &members[1]), &members, None, &Answers::new());
        assert!(unknown.iter().all(|c| c.ok.is_none()) && unknown.len() == 4, "{unknown:?}");
        let prepared = Prepared { slots: Some(vec![name("a")]), ..Prepared::default() };
        let said = slots(&name("b"), &members, &prepared);
        assert_eq!((said.ok, said.detail.ends_with("for c")), (Some(false), true), "{said}");
        let prepared = Prepared { slots: Some(vec![name("a"), name("c")]), ..prepared };
        assert_eq!(slots(&name("b"), &members, &prepared).ok, Some(true));
        assert_eq!(caught_up(&name("b"), Some(NEAR + 1)).ok, Some(false));
    }

    #[test]
    fn a_disk_that_cannot_be_written_or_is_nearly_full_is_not_ok() {
        let space = Space { available: 3 << 30, size: 100 << 30, read_only: false };
        let ok = |space: Space| disk(&name("b"), "WAL", &space).ok;
        assert_eq!(ok(space), Some(false));
        assert_eq!(ok(Space { available: 5 << 30, ..space }), Some(true));
        assert_eq!(ok(Space { available: 50 << 30, read_only: true, ..space }), Some(false));
    }
}
