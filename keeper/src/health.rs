//! Whether PostgreSQL is well, by what probes say. Pure: a probe asks one question, and here it is counted for how long
//! the question has been without a good answer.
//!
//! The one rule: overload is not death. A refusal is an answer; a late answer is one too; and what a keeper cannot tell
//! apart from trouble of its own counts for nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::Moment;

/// Questions within `unresponsive_after`. Voters count on them: see `standstill`.
pub const QUESTIONS: u32 = 5;

/// How one question ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It works, also where it was refused: no more sessions, wrong password.
    Well,
    /// It does not: no answer in all the time that is allowed, or the disk gave an error.
    Unwell(String),
    /// The question could not be asked, or its failure has causes that are none of PostgreSQL's.
    Unknown,
}

/// One question that is asked over and over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vital {
    /// Since when a question is under way.
    asked: Option<Moment>,
    /// What the last answer complained of, until there is a good one.
    problem: Option<String>,
    /// For how long the answers have been missing or bad, as far as this keeper has looked.
    unwell_for: Duration,
}

/// A keeper that has not looked for longer than this was paused itself, and has seen nothing meanwhile.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

impl Vital {
    /// A question goes out.
    pub fn asks(&mut self, now: Moment) {
        self.asked = Some(now);
    }

    /// It was answered.
    pub fn hears(&mut self, answer: Answer) {
        self.asked = None;
        match answer {
            Answer::Well | Answer::Unknown => *self = Self::default(),
            Answer::Unwell(problem) => self.problem = Some(problem),
        }
    }

    /// Returns for how long it has had no good answer.
    pub fn unwell_for(&self) -> Duration {
        self.unwell_for
    }

    /// `passed` has gone by since the last look.
    pub fn look(&mut self, now: Moment, passed: Duration) {
        let unwell = match (&self.problem, self.asked) {
            (Some(_), _) => passed,
            (None, Some(asked)) => passed.min(now.since(asked)),
            (None, None) => Duration::ZERO,
        };
        self.unwell_for += unwell.min(LONGEST_LOOK);
    }
}

/// What is asked of an open primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Does it accept a new session? The postmaster's part: open sessions do not need it.
    pub sessions: Vital,
    /// Does a small transaction commit here, without regard to standbys? Of a primary without enough voters: is a file
    /// on the WAL disk written and synced? It should make no WAL that would have to be rewound.
    pub commits: Vital,
    looked: Moment,
}

impl Pulse {
    /// Counts the time since the last look.
    pub fn look(&mut self, now: Moment) {
        let passed = now.since(self.looked);
        self.looked = now;
        self.sessions.look(now, passed);
        self.commits.look(now, passed);
    }

    /// Returns what does not work, if it has not for `unresponsive_after`.
    pub fn unresponsive(&self, unresponsive_after: Duration) -> Option<String> {
        let lost = |vital: &Vital, what: &str| {
            (vital.unwell_for >= unresponsive_after).then(|| match &vital.problem {
                Some(problem) => format!("{what}: {problem}"),
                None => format!("{what}: no answer"),
            })
        };
        lost(&self.commits, "a small transaction does not commit on its disk")
            .or_else(|| lost(&self.sessions, "a new session is not accepted"))
    }
}

/// A disk as it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub size: u64,
    pub available: u64,
    pub read_only: bool,
}

/// A disk is nearly full below this part of it, or below `LEAST_FREE`, whichever is less.
const NEARLY_FULL_PERCENT: u64 = 5;
/// More than any checkpoint leaves behind with default settings.
const LEAST_FREE: u64 = 4 << 30;
/// What is said goes away again only above this many percent of the limit: a report is a write to etcd.
const ROOMY_PERCENT: u64 = 140;
/// A disk that needs this long for a few bytes holds up every commit.
pub const SLOW_SYNC: Duration = Duration::from_secs(1);
/// So many quick ones in a row end the complaint.
const QUICK_SYNCS: u32 = 6;

/// What is known of the disks of data and WAL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disks {
    problems: BTreeSet<String>,
    quick: u32,
}

impl Disks {
    /// Takes in how a disk is: `name` is what an operator calls it.
    pub fn see(&mut self, name: &str, disk: Disk) {
        let limit = (disk.size / 100 * NEARLY_FULL_PERCENT).min(LEAST_FREE);
        let full = format!("the disk of the {name} is nearly full");
        if disk.available < limit {
            self.problems.insert(full);
        } else if disk.available >= limit / 100 * ROOMY_PERCENT {
            self.problems.remove(&full);
        }
        self.set(format!("the disk of the {name} is mounted read-only"), disk.read_only);
    }

    /// Takes in how long writing and syncing a few bytes took on the WAL disk, or why it failed.
    pub fn synced(&mut self, outcome: Result<Duration, String>) {
        const FAILS: &str = "writing to the disk of the WAL fails: ";
        let slow =
            format!("syncing a few bytes to the disk of the WAL takes more than {SLOW_SYNC:?}");
        self.problems.retain(|problem| !problem.starts_with(FAILS));
        match outcome {
            Err(error) => drop(self.problems.insert(format!("{FAILS}{error}"))),
            Ok(took) if took > SLOW_SYNC => {
                self.quick = 0;
                self.problems.insert(slow);
            }
            Ok(_) => {
                self.quick = self.quick.saturating_add(1);
                if self.quick >= QUICK_SYNCS {
                    self.problems.remove(&slow);
                }
            }
        }
    }

    /// Returns what an operator should know.
    pub fn problems(&self) -> &BTreeSet<String> {
        &self.problems
    }

    fn set(&mut self, problem: String, holds: bool) {
        match holds {
            true => drop(self.problems.insert(problem)),
            false => drop(self.problems.remove(&problem)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(1_000 + seconds))
    }

    /// Looks every second, from the first second to the last one.
    fn pass(pulse: &mut Pulse, seconds: std::ops::RangeInclusive<u64>) {
        seconds.for_each(|second| pulse.look(at(second)));
    }

    fn watched() -> Pulse {
        let mut pulse = Pulse::default();
        pulse.look(at(0));
        pulse
    }

    #[test]
    fn a_question_without_an_answer_counts_from_when_it_was_asked() {
        let mut pulse = watched();
        pulse.commits.asks(at(0));
        pass(&mut pulse, 1..=9);
        assert_eq!(pulse.unresponsive(AFTER), None);
        pulse.look(at(10));
        let said = pulse.unresponsive(AFTER).unwrap();
        assert_eq!(said, "a small transaction does not commit on its disk: no answer");
    }

    #[test]
    fn a_late_answer_and_a_refusal_are_signs_of_life() {
        let mut pulse = watched();
        pulse.sessions.asks(at(0));
        pass(&mut pulse, 1..=9);
        pulse.sessions.hears(Answer::Well);
        pulse.sessions.asks(at(9));
        pass(&mut pulse, 10..=18);
        assert_eq!(pulse.unresponsive(AFTER), None, "nine seconds twice");
    }

    #[test]
    fn errors_of_the_disk_count_from_one_question_to_the_next() {
        let mut pulse = watched();
        for second in 1..=10 {
            pulse.commits.asks(at(second - 1));
            pulse.commits.hears(Answer::Unwell("no space left".into()));
            pulse.look(at(second));
        }
        assert!(pulse.unresponsive(AFTER).unwrap().ends_with("no space left"));
        pulse.commits.asks(at(10));
        pulse.commits.hears(Answer::Well);
        assert_eq!(pulse.unresponsive(AFTER), None);
    }

    #[test]
    fn what_is_not_known_counts_for_nothing() {
        let mut pulse = watched();
        for second in 1..=30 {
            pulse.sessions.asks(at(second - 1));
            pulse.sessions.hears(Answer::Unknown);
            pulse.look(at(second));
        }
        assert_eq!(pulse.unresponsive(AFTER), None);
    }

    #[test]
    fn a_keeper_that_was_paused_itself_has_seen_nothing_meanwhile() {
        let mut pulse = watched();
        pulse.commits.asks(at(0));
        pulse.look(at(3_600));
        assert_eq!(pulse.unresponsive(AFTER), None);
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_told_until_it_is_roomy_again() {
        let (mut disks, size) = (Disks::default(), 1000 << 20);
        let disk = |available: u64| Disk { size, available: available << 20, read_only: false };
        disks.see("WAL", disk(60));
        assert!(disks.problems().is_empty());
        disks.see("WAL", disk(40));
        disks.see("WAL", disk(60));
        assert_eq!(disks.problems().len(), 1, "no flutter: {:?}", disks.problems());
        disks.see("WAL", disk(90));
        assert!(disks.problems().is_empty());
        disks.see("WAL", Disk { read_only: true, ..disk(500) });
        assert!(disks.problems().first().unwrap().ends_with("mounted read-only"));
    }

    #[test]
    fn a_slow_disk_is_told_until_it_has_been_quick_for_a_while() {
        let mut disks = Disks::default();
        disks.synced(Ok(SLOW_SYNC * 2));
        (1..QUICK_SYNCS).for_each(|_| disks.synced(Ok(Duration::ZERO)));
        assert_eq!(disks.problems().len(), 1);
        disks.synced(Err("no space left".into()));
        assert_eq!(disks.problems().len(), 2);
        disks.synced(Ok(Duration::ZERO));
        assert!(disks.problems().is_empty(), "{:?}", disks.problems());
    }
}
