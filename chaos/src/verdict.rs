//! Judges one run from what clients were told and what the members hold. A pure function.
//!
//! The one rule: an outcome that nobody was told is unknown and proves nothing, and a run that shows too
//! little is a failed run, not a good one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::{MemberName, Moment, Timeline};

/// Fewer acknowledged commits than this show nothing about a fault of a tenth of a second.
pub const LEAST_ACKNOWLEDGED: usize = 1_000;

/// A load below this is no load: the gap around a fault would be the pause between two commits.
pub const LEAST_PER_SECOND: f64 = 200.0;

/// A commit that a client was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub id: i64,
    /// Before the commit was sent.
    pub invoked: Moment,
    /// When its answer was read.
    pub acked: Moment,
}

/// A beacon that a member acknowledged to its observer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beacon {
    pub member: MemberName,
    /// The timeline in which the member wrote it: one epoch, one timeline.
    pub timeline: Timeline,
    pub ack: Ack,
}

/// What one member holds at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    pub commits: BTreeSet<i64>,
    pub beacons: BTreeSet<i64>,
}

/// Everything that a verdict rests on.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub acknowledged: Vec<Ack>,
    pub beacons: Vec<Beacon>,
    /// What each member holds, once the cluster is redundant and the standbys have replayed everything.
    pub holdings: BTreeMap<MemberName, Holding>,
    /// How many members there are.
    pub members: usize,
    /// How many epochs began while it was watched.
    pub epochs: usize,
    /// Commits per second before the fault.
    pub per_second: f64,
}

/// An acknowledged write that a member does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub what: Written,
    pub missing_on: Vec<MemberName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Written {
    Commit(i64),
    Beacon(i64),
}

/// Two primaries that acknowledged where only one may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dual {
    /// `older` took and acknowledged a write after `newer` had acknowledged one.
    Overlap { older: Beacon, newer: Beacon },
    /// Two members acknowledged in one timeline.
    SharedTimeline { one: Beacon, other: Beacon },
}

/// What the evidence shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub lost: Vec<Lost>,
    pub dual: Vec<Dual>,
    /// Why the evidence is too thin to say that nothing was lost.
    pub inconclusive: Vec<String>,
}

impl Verdict {
    /// Returns whether the promise was shown to be kept.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.dual.is_empty() && self.inconclusive.is_empty()
    }
}

/// Judges the evidence.
pub fn judge(evidence: &Evidence) -> Verdict {
    Verdict {
        lost: lost(evidence),
        dual: dual(&evidence.beacons),
        inconclusive: too_thin(evidence),
    }
}

/// Judges a run in which an operator accepted loss: nothing may be missing but what was acknowledged between `from` and
/// `until`, and that on all members alike.
pub fn judge_with_loss(evidence: &Evidence, from: Moment, until: Moment) -> Verdict {
    let beacons = evidence.beacons.iter().map(|b| (Written::Beacon(b.ack.id), b.ack));
    let commits = evidence.acknowledged.iter().map(|ack| (Written::Commit(ack.id), *ack));
    let told: BTreeMap<Written, Ack> = commits.chain(beacons).collect();
    let mut verdict = judge(evidence);
    verdict.lost.retain(|lost| {
        let in_time = told.get(&lost.what).is_some_and(|a| a.acked >= from && a.invoked <= until);
        !(in_time && lost.missing_on.len() == evidence.holdings.len())
    });
    verdict
}

fn lost(evidence: &Evidence) -> Vec<Lost> {
    let missing = |held: &dyn Fn(&Holding) -> bool| -> Vec<MemberName> {
        evidence.holdings.iter().filter(|(_, h)| !held(h)).map(|(name, _)| name.clone()).collect()
    };
    let commits = evidence.acknowledged.iter().map(|ack| {
        (Written::Commit(ack.id), missing(&|holding| holding.commits.contains(&ack.id)))
    });
    let beacons = evidence.beacons.iter().map(|beacon| {
        (
            Written::Beacon(beacon.ack.id),
            missing(&|holding| holding.beacons.contains(&beacon.ack.id)),
        )
    });
    let all = commits.chain(beacons).filter(|(_, missing_on)| !missing_on.is_empty());
    all.map(|(what, missing_on)| Lost { what, missing_on }).collect()
}

/// An old primary's answer may be read late though its commit was sealed in time, so only a write that was
/// *begun* after a newer primary had acknowledged one convicts.
fn dual(beacons: &[Beacon]) -> Vec<Dual> {
    let mut first_of: BTreeMap<Timeline, &Beacon> = BTreeMap::new();
    for beacon in beacons {
        let first = first_of.entry(beacon.timeline).or_insert(beacon);
        if beacon.ack.acked < first.ack.acked {
            *first = beacon;
        }
    }
    let mut found = Vec::new();
    for beacon in beacons {
        let newer = first_of.range(beacon.timeline.next()..).map(|(_, first)| *first);
        if let Some(newer) =
            newer.min_by_key(|n| n.ack.acked).filter(|n| beacon.ack.invoked > n.ack.acked)
        {
            found.push(Dual::Overlap { older: beacon.clone(), newer: newer.clone() });
        }
        let first = first_of[&beacon.timeline];
        if first.member != beacon.member {
            found.push(Dual::SharedTimeline { one: first.clone(), other: beacon.clone() });
        }
    }
    found
}

fn too_thin(evidence: &Evidence) -> Vec<String> {
    let mut reasons = Vec::new();
    let count = evidence.acknowledged.len();
    if count < LEAST_ACKNOWLEDGED {
        reasons.push(format!(
            "{count} commits were acknowledged, at least {LEAST_ACKNOWLEDGED} are needed"
        ));
    }
    if evidence.per_second < LEAST_PER_SECOND {
        reasons.push(format!(
            "the load made {:.0} commits a second, at least {LEAST_PER_SECOND:.0} are needed: use a machine with less to do",
            evidence.per_second
        ));
    }
    // An epoch may end before its primary takes a beacon; of those that were seen it is shown that no two served at once.
    let seen: BTreeSet<Timeline> = evidence.beacons.iter().map(|b| b.timeline).collect();
    let seen = seen.len();
    if seen == 0 {
        reasons.push("no observer saw a primary".into());
    } else if seen < 1 + evidence.epochs / 2 {
        reasons.push(format!(
            "{} epochs began, and observers saw primaries of {seen} timelines only",
            evidence.epochs
        ));
    }
    let read = evidence.holdings.len();
    if read < evidence.members || read == 0 {
        reasons.push(format!("{read} of {} members were read at the end", evidence.members));
    }
    reasons
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, id) = match self.what {
            Written::Commit(id) => ("commit", id),
            Written::Beacon(id) => ("beacon", id),
        };
        let names: Vec<&str> = self.missing_on.iter().map(MemberName::as_str).collect();
        write!(f, "{kind} {id} was acknowledged and is not on {}", names.join(", "))
    }
}

impl fmt::Display for Dual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dual::Overlap { older, newer } => write!(
                f,
                "{} took and acknowledged beacon {} in timeline {}, {:.1} ms after {} had acknowledged one in timeline {}",
                older.member,
                older.ack.id,
                older.timeline,
                older.ack.invoked.since(newer.ack.acked).as_secs_f64() * 1e3,
                newer.member,
                newer.timeline
            ),
            Dual::SharedTimeline { one, other } => {
                write!(
                    f,
                    "{} and {} both acknowledged in timeline {}",
                    one.member, other.member, one.timeline
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::since_boot(Duration::from_millis(ms))
    }

    fn beacon(member: &str, timeline: u32, id: i64, times: (u64, u64)) -> Beacon {
        let ack = Ack { id, invoked: at(times.0), acked: at(times.1) };
        Beacon { member: member.parse().unwrap(), timeline: Timeline(timeline), ack }
    }

    #[test]
    fn an_accepted_loss_excuses_what_was_told_in_its_time_and_is_missing_everywhere() {
        let mut evidence = good();
        for holding in evidence.holdings.values_mut() {
            holding.commits.remove(&1000);
        }
        let lost = |evidence: &Evidence, from, until| {
            judge_with_loss(evidence, at(from), at(until)).lost.len()
        };
        assert_eq!((lost(&evidence, 900, 1100), lost(&evidence, 1003, 1100)), (0, 1));
        assert_eq!(lost(&evidence, 900, 999), 1, "it was begun after the new primary was there");
        evidence.holdings.values_mut().next().unwrap().commits.insert(1000);
        assert_eq!(lost(&evidence, 900, 1100), 1, "one member holds what others lack");
    }

    /// A run in which a was primary until 1000 ms and b from 1100 ms on, and nothing went wrong.
    fn good() -> Evidence {
        let acknowledged: Vec<Ack> = (1..=2000)
            .map(|id: i64| Ack {
                id,
                invoked: at(id.unsigned_abs()),
                acked: at(id.unsigned_abs() + 2),
            })
            .collect();
        let mut beacons: Vec<Beacon> =
            (0..20).map(|n| beacon("a", 1, n, (n as u64 * 50, n as u64 * 50 + 3))).collect();
        beacons.extend((22..40).map(|n| beacon("b", 2, n, (n as u64 * 50, n as u64 * 50 + 3))));
        let holding = Holding {
            // What nobody was told may be there or not.
            commits: acknowledged.iter().map(|a| a.id).chain([5000]).collect(),
            beacons: beacons.iter().map(|b| b.ack.id).collect(),
        };
        let holdings = ["a", "b", "c"].map(|m| (m.parse().unwrap(), holding.clone())).into();
        Evidence { acknowledged, beacons, holdings, members: 3, epochs: 1, per_second: 600.0 }
    }

    fn on_each(evidence: &mut Evidence, change: impl Fn(&mut Holding) -> bool) {
        for holding in evidence.holdings.values_mut() {
            assert!(change(holding), "the planted anomaly changes something");
        }
    }

    #[test]
    fn a_good_log_passes() {
        assert!(judge(&good()).is_good(), "{:?}", judge(&good()));
    }

    #[test]
    fn a_commit_missing_on_any_one_member_is_lost() {
        for member in ["a", "b", "c"] {
            let mut evidence = good();
            evidence.holdings.get_mut(&member.parse().unwrap()).unwrap().commits.remove(&777);
            let verdict = judge(&evidence);
            let missing_on = vec![member.parse().unwrap()];
            assert_eq!(verdict.lost, [Lost { what: Written::Commit(777), missing_on }]);
            assert!(!verdict.is_good() && verdict.lost[0].to_string().contains("commit 777"));
        }
    }

    #[test]
    fn a_beacon_missing_everywhere_is_lost_once_with_all_members_named() {
        let mut evidence = good();
        on_each(&mut evidence, |holding| holding.beacons.remove(&7));
        let verdict = judge(&evidence);
        assert_eq!(verdict.lost.len(), 1);
        assert_eq!(verdict.lost[0].to_string(), "beacon 7 was acknowledged and is not on a, b, c");
    }

    #[test]
    fn a_write_taken_by_the_old_primary_after_the_new_one_acknowledged_is_dual() {
        let mut evidence = good();
        let planted = beacon("a", 1, 20, (1200, 1203));
        evidence.beacons.push(planted);
        on_each(&mut evidence, |holding| holding.beacons.insert(20));
        let verdict = judge(&evidence);
        assert_eq!(verdict.dual.len(), 1);
        assert!(verdict.lost.is_empty() && !verdict.is_good());
        assert!(verdict.dual[0].to_string().contains("97.0 ms after b"), "{}", verdict.dual[0]);
    }

    #[test]
    fn a_late_answer_to_a_write_that_was_begun_in_time_is_no_overlap() {
        let mut evidence = good();
        evidence.beacons.push(beacon("a", 1, 20, (1000, 1500)));
        on_each(&mut evidence, |holding| holding.beacons.insert(20));
        assert!(judge(&evidence).is_good());
    }

    #[test]
    fn an_overlap_with_any_newer_timeline_is_found_though_the_next_one_is_innocent() {
        let mut evidence = good();
        evidence.beacons.push(beacon("c", 3, 60, (1300, 1301)));
        evidence.beacons.sort_by_key(|b| b.ack.id);
        let overlaps = judge(&evidence).dual.len();
        // b's beacons begun after 1301 ms: those of 1350 up to 1950.
        assert_eq!(overlaps, 13);
    }

    #[test]
    fn two_members_in_one_timeline_are_dual_though_their_times_do_not_overlap() {
        let mut evidence = good();
        evidence.beacons.push(beacon("c", 2, 23, (5000, 5001)));
        assert!(matches!(judge(&evidence).dual[..], [Dual::SharedTimeline { .. }]));
    }

    #[test]
    fn a_run_that_shows_too_little_is_not_good() {
        let mut few = good();
        few.acknowledged.truncate(LEAST_ACKNOWLEDGED - 1);
        let mut slow = good();
        slow.per_second = 199.0;
        let mut unread = good();
        unread.holdings.pop_last();
        let mut blind = good();
        blind.beacons.clear();
        let mut drowsy = good();
        drowsy.epochs = 4;
        for (evidence, word) in [
            (few, "999 commits"),
            (slow, "199 commits a second"),
            (unread, "2 of 3"),
            (blind, "no observer"),
            (drowsy, "4 epochs began"),
        ] {
            let verdict = judge(&evidence);
            assert!(!verdict.is_good());
            assert!(verdict.inconclusive[0].contains(word), "{:?}", verdict.inconclusive);
        }
        assert_eq!(judge(&Evidence::default()).inconclusive.len(), 4);
    }
}
