//! How long an old primary could have acknowledged after its loss, by the history of the change that followed.

use std::time::Duration;

use proto::WallTime;
use proto::drill::Drill;
use proto::history::{HistoryKind, HistoryRecord};

use super::seen::Seen;

/// Returns the time from the loss until enough voters had sealed, or, in a switchover, until the old primary had
/// stopped; none where the primary was not replaced. Wall clocks of several hosts are compared: what they differ by counts.
pub fn fenced(seen: &Seen, drill: &Drill) -> Option<Duration> {
    let said = seen.answers.get(&drill.target).filter(|said| said.id == drill.id);
    let next = |record: &&HistoryRecord| record.epoch == drill.epoch.next() && record.restart == 0;
    of_change(seen.history.iter().find(next)?, said.map(|said| said.at))
}

fn of_change(record: &HistoryRecord, struck: Option<WallTime>) -> Option<Duration> {
    let phase = |name: &str| record.phases.iter().find(|phase| phase.name == name);
    let (loss, over) = match record.kind {
        HistoryKind::Failover => {
            let noticed = phase("notice")?.start;
            // A frozen or a cut primary is noticed later than it is struck.
            (struck.map_or(noticed, |struck| struck.min(noticed)), phase("seal")?.end?)
        }
        HistoryKind::Switchover => (phase("stop")?.start, phase("stop")?.end?),
        HistoryKind::Founding | HistoryKind::Restart => return None,
    };
    Some(Duration::from_millis(u64::try_from(over.ms_since(loss)).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proto::Epoch;
    use proto::history::PhaseRecord;

    use super::*;

    fn change(kind: HistoryKind, phases: &[(&str, i64, Option<i64>)]) -> HistoryRecord {
        let phases = phases.iter().map(|(name, start, end)| PhaseRecord {
            name: (*name).to_owned(),
            start: WallTime(*start),
            end: end.map(WallTime),
        });
        HistoryRecord {
            kind,
            epoch: Epoch(2),
            restart: 0,
            from: None,
            to: None,
            cause: String::new(),
            evidence: Vec::new(),
            chosen: None,
            rejected: Vec::new(),
            phases: phases.collect(),
            rejoined: Vec::new(),
            notes: Vec::new(),
            redundant: None,
        }
    }

    #[test]
    fn an_old_primary_is_fenced_when_enough_have_sealed_or_it_has_stopped() {
        let failover = [("notice", 900, Some(1000)), ("seal", 1000, Some(1040))];
        let failover = change(HistoryKind::Failover, &failover);
        let ms = |record: &HistoryRecord, struck: Option<i64>| {
            of_change(record, struck.map(WallTime)).map(|time| time.as_millis())
        };
        assert_eq!(ms(&failover, Some(400)), Some(640));
        assert_eq!(ms(&failover, None), Some(140), "by what was noticed");
        assert_eq!(ms(&failover, Some(5000)), Some(140), "a clock that is ahead shortens nothing");
        let begun = change(HistoryKind::Failover, &[("notice", 9, Some(10)), ("seal", 10, None)]);
        assert_eq!(ms(&begun, None), None, "it is not over");
        let phases = [("checkpoint", 1, Some(500)), ("stop", 500, Some(530)), ("seal", 530, None)];
        assert_eq!(ms(&change(HistoryKind::Switchover, &phases), None), Some(30));
        assert_eq!(ms(&change(HistoryKind::Restart, &[("notice", 1, Some(2))]), None), None);
    }
}
