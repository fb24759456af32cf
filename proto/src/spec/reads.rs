//! The part of the spec about reads: which standbys get them, and when lag costs one its place.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SpecError;
use crate::size;
use crate::time::duration;

/// Which standbys get reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reads {
    /// How much WAL that is known to exist a standby may not have replayed, in bytes.
    #[serde(with = "size")]
    pub max_lag_bytes: u64,
    /// For how long WAL may be known to exist and not be replayed.
    #[serde(with = "duration")]
    pub max_lag_time: Duration,
    /// A standby that was over a limit comes back once it is below this part of both, in percent ...
    pub return_below_percent: u8,
    /// ... and has been for this long.
    #[serde(with = "duration")]
    pub return_after: Duration,
    /// So many members stay in a pool whatever they lag, as long as they stream.
    pub min_members: usize,
    pub fallback: ReadFallback,
    /// How long the sessions on a member that has left a pool may last.
    #[serde(with = "duration")]
    pub drain: Duration,
}

/// Who fills a pool that has fewer than `min_members` within the limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFallback {
    /// The standbys that lag least.
    #[default]
    LeastLagging,
    /// The primary, and only where there is none the standbys that lag least.
    Primary,
}

impl Default for Reads {
    fn default() -> Self {
        Self {
            // One segment of WAL: what a bulk load makes in a second or two.
            max_lag_bytes: 16 << 20,
            max_lag_time: Duration::from_secs(10),
            return_below_percent: 50,
            // Five answers of a keeper: one good moment is not health.
            return_after: Duration::from_secs(5),
            min_members: 1,
            fallback: ReadFallback::LeastLagging,
            drain: Duration::from_secs(30),
        }
    }
}

impl Reads {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether this lag is over a limit.
    pub fn is_over(&self, bytes: u64, time: Duration) -> bool {
        bytes > self.max_lag_bytes || time > self.max_lag_time
    }

    /// Returns whether this lag is so low that a standby may come back.
    pub fn is_low(&self, bytes: u64, time: Duration) -> bool {
        let part = |whole: u128| whole * u128::from(self.return_below_percent) / 100;
        u128::from(bytes) <= part(self.max_lag_bytes.into())
            && time.as_millis() <= part(self.max_lag_time.as_millis())
    }

    pub(super) fn check(&self) -> Result<(), SpecError> {
        let refuse = |text: String| Err(SpecError(format!("reads.{text}")));
        let show = humantime::format_duration;
        let bytes = self.max_lag_bytes;
        if !(64 << 10..=1 << 40).contains(&bytes) {
            return refuse(format!("max_lag_bytes is {}: use 64kB to 1TB", size::show(bytes)));
        }
        if !(10..=100).contains(&self.return_below_percent) {
            let percent = self.return_below_percent;
            return refuse(format!("return_below_percent is {percent}: use 10 to 100"));
        }
        if self.min_members == 0 {
            return refuse(
                "min_members is 0: with it lag could empty the pool, use 1 or more".into(),
            );
        }
        for (name, value, least, most) in [
            // Keepers are asked once a second.
            ("max_lag_time", self.max_lag_time, 2, 86_400),
            ("return_after", self.return_after, 0, 3_600),
            ("drain", self.drain, 0, 86_400),
        ] {
            let (low, high) = (Duration::from_secs(least), Duration::from_secs(most));
            if value < low || value > high {
                return refuse(format!(
                    "{name} is {}: use {} to {}",
                    show(value),
                    show(low),
                    show(high)
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_use() {
        let good = Reads::default;
        let cases = [
            (Reads { max_lag_bytes: 1, ..good() }, "use 64kB to 1TB"),
            (Reads { max_lag_time: Duration::from_secs(1), ..good() }, "use 2s to 1day"),
            (Reads { return_below_percent: 0, ..good() }, "use 10 to 100"),
            (Reads { min_members: 0, ..good() }, "use 1 or more"),
            (Reads { drain: Duration::from_secs(100_000), ..good() }, "use 0s to 1day"),
        ];
        for (reads, remedy) in cases {
            let error = reads.check().unwrap_err().to_string();
            assert!(error.starts_with("spec: reads.") && error.contains(remedy), "{error}");
        }
        assert_eq!(good().check(), Ok(()));
    }

    #[test]
    fn between_the_two_marks_a_standby_neither_leaves_nor_comes_back() {
        let reads = Reads::default();
        let between = (10 << 20, Duration::from_secs(1));
        assert!(!reads.is_over(between.0, between.1) && !reads.is_low(between.0, between.1));
        assert!(
            reads.is_over(0, Duration::from_secs(11))
                && reads.is_low(8 << 20, Duration::from_secs(5))
        );
    }
}
