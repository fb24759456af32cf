//! What a check is asked besides its path, in the query of its URI: `?lag=16MB&lag=10s`, `?lsn=0/3000060`.

use std::time::Duration;

use proto::report::{MemberReport, Stream};
use proto::{Lsn, Moment, size, time};

use crate::view::{Serving, View};

/// The limits that a member must be within to be answered with yes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// The lag above which a standby is refused, in bytes ...
    lag_bytes: Option<u64>,
    /// ... and in time.
    lag_time: Option<Duration>,
    /// The position that must be replayed; on a primary, flushed.
    lsn: Option<Lsn>,
    /// The standby must be streaming.
    streaming: bool,
}

impl Asked {
    /// Reads the query. Keys that are not ours are left alone: load balancers are shared.
    pub(super) fn parse(query: &[(String, String)]) -> Result<Self, String> {
        let mut asked = Self::default();
        for (key, value) in query {
            match key.as_str() {
                "lag" => match (size::parse(value), time::parse_duration(value)) {
                    (Ok(bytes), _) => asked.lag_bytes = Some(bytes),
                    (Err(_), Ok(time)) => asked.lag_time = Some(time),
                    (Err(problem), Err(_)) => {
                        return Err(format!("lag: {problem}, nor a time such as 10s\n"));
                    }
                },
                "lsn" => {
                    let lsn = value.parse().map_err(|e| format!("lsn: {e}\n"))?;
                    asked.lsn = Some(lsn);
                }
                "replication_state" if value == "streaming" => asked.streaming = true,
                _ => {}
            }
        }
        Ok(asked)
    }

    /// Returns whether `view` serves reads as a standby within these limits. What is not known is within none.
    pub(super) fn standby(&self, view: &View, now: Moment) -> bool {
        let within = |limit: Option<bool>| limit.unwrap_or(true);
        let lag = view.lag;
        view.serving_at(now) == Serving::Standby
            && within(self.lag_bytes.map(|most| lag.is_some_and(|l| l.bytes <= most)))
            && within(self.lag_time.map(|most| lag.is_some_and(|l| l.time(now) <= most)))
            && within(self.lsn.map(|lsn| replayed(view).is_some_and(|r| r >= lsn)))
            && (!self.streaming || is_streaming(&view.status.report))
    }

    /// Returns whether `view` serves as the primary and holds the asked position.
    pub(super) fn primary(&self, view: &View, now: Moment) -> bool {
        let flushed = view.status.positions.map(|p| p.flush_lsn);
        view.serving_at(now) == Serving::Primary
            && self.lsn.is_none_or(|lsn| flushed.is_some_and(|f| f >= lsn))
    }
}

fn replayed(view: &View) -> Option<Lsn> {
    view.status.positions.and_then(|p| p.replay_lsn)
}

fn is_streaming(report: &MemberReport) -> bool {
    matches!(report.stream, Stream::Live { .. })
}
