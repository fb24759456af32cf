//! What the standing canary has seen, in words.

use std::fmt;

use proto::canary::CanaryRecord;

use crate::table::milliseconds;

/// So many gaps are shown to people.
const GAPS_SHOWN: usize = 5;

/// What the canary has seen, and who writes it now, for people.
pub struct Told<'a>(pub &'a CanaryRecord, pub Option<&'a str>);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(record, runner) = self;
        let runner = runner.map_or("nobody now".to_owned(), |runner| format!("runner {runner}"));
        write!(
            f,
            "canary since {}, written by {runner}: acknowledged {}, lost {}, not proven {}, unknown {}",
            record.since, record.acknowledged, record.lost, record.unproven, record.unknown
        )?;
        for loss in &record.losses {
            write!(f, "\n  LOST: {loss}")?;
        }
        for gap in record.gaps.iter().rev().take(GAPS_SHOWN) {
            let length = milliseconds(i64::try_from(gap.ms).unwrap_or(i64::MAX));
            write!(
                f,
                "\n  none for {length} from {} (timeline {} to {})",
                gap.from, gap.before, gap.after
            )?;
        }
        Ok(())
    }
}
