//! Finds where two timeline histories part: the newest timeline that both have, and how far both have it.
//!
//! Rule: a timeline is common only if it began at the same place in both. Two members that were promoted
//! independently give the same number to different logs.

use proto::{Lsn, Timeline, TimelineHistory};

/// Where a member's log leaves the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The newest common timeline.
    pub timeline: Timeline,
    /// Up to here both have it. `None` where both are still on it.
    pub until: Option<Lsn>,
}

/// Returns where `target` leaves `source`; `None` if not even the first timeline is common.
pub fn fork_of(target: &TimelineHistory, source: &TimelineHistory) -> Option<Fork> {
    let mut common = None;
    for (ours, theirs) in spans(target).zip(spans(source)) {
        if ours.timeline != theirs.timeline || ours.begin != theirs.begin {
            break;
        }
        let until = match (ours.end, theirs.end) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        common = Some(Fork { timeline: ours.timeline, until });
        if ours.end != theirs.end {
            break;
        }
    }
    common
}

/// One timeline's part of a log; the last one has no end.
struct Span {
    timeline: Timeline,
    begin: Lsn,
    end: Option<Lsn>,
}

fn spans(history: &TimelineHistory) -> impl Iterator<Item = Span> {
    let begins = std::iter::once(Lsn(0)).chain(history.ancestors.iter().map(|a| a.until));
    let ancestors = history.ancestors.iter().map(|a| (a.timeline, Some(a.until)));
    begins.zip(ancestors.chain([(history.timeline, None)])).map(|(begin, (timeline, end))| Span {
        timeline,
        begin,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(Timeline(timeline), text).unwrap()
    }

    fn fork(timeline: u32, until: u64) -> Option<Fork> {
        Some(Fork { timeline: Timeline(timeline), until: Some(Lsn(until)) })
    }

    #[test]
    fn histories_part_at_the_first_switch_that_only_one_has() {
        let first = history(1, "");
        let second = history(2, "1\t0/300\tx\n");
        let third = history(3, "1\t0/300\tx\n2\t0/500\tx\n");
        assert_eq!(fork_of(&first, &second), fork(1, 0x300));
        assert_eq!(fork_of(&first, &third), fork(1, 0x300));
        assert_eq!(fork_of(&second, &third), fork(2, 0x500));
        assert_eq!(fork_of(&third, &second), fork(2, 0x500));
        let same = Fork { timeline: Timeline(2), until: None };
        assert_eq!(fork_of(&second, &second), Some(same));
    }

    #[test]
    fn one_number_for_two_logs_is_not_common() {
        let ours = history(2, "1\t0/300\tx\n");
        let theirs = history(2, "1\t0/400\tx\n");
        assert_eq!(fork_of(&ours, &theirs), fork(1, 0x300));
        let later = history(3, "1\t0/400\tx\n2\t0/500\tx\n");
        assert_eq!(fork_of(&ours, &later), fork(1, 0x300));
        // Both came from timeline 1, one over 2 and one over 3.
        let over_3 = history(4, "1\t0/300\tx\n3\t0/600\tx\n");
        assert_eq!(fork_of(&ours, &over_3), fork(1, 0x300));
        assert_eq!(fork_of(&history(2, ""), &history(3, "1\t0/1\tx")), None);
    }
}
