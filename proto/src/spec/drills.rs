//! The part of the spec about drills: when the canary is written, and what the cluster is to keep in a drill.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ClusterSpec;
use crate::time::optional_duration;

/// How drills judge this cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrillSpec {
    pub canary: CanaryWhen,
    /// How long writes may be away in a drill, by its canary; 30 s where it is absent.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub write_gap_within: Option<Duration>,
    /// How soon the cluster must be fully redundant again; 60 s where it is absent.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub redundant_within: Option<Duration>,
    /// How soon after its loss an old primary must be unable to acknowledge; where it is absent, what the timings give.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub fence_within: Option<Duration>,
}

/// When the commit canary is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CanaryWhen {
    /// While a drill runs.
    #[default]
    Drills,
    /// Also by one of the runners that have a way to the primary, all the time.
    Always,
}

impl DrillSpec {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ClusterSpec {
    /// Returns how soon after its loss an old primary must be unable to acknowledge. By the timings alone that is a
    /// lease's time, after which a primary that is cut off has stopped itself, and the silence by which it is noticed.
    pub fn fence_within(&self) -> Duration {
        self.drills.fence_within.unwrap_or(self.lease_ttl + self.silent_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;

    #[test]
    fn objectives_are_read_and_not_written_where_nobody_has_any() {
        let plain = ClusterSpec::default();
        assert!(!document::encode(&plain).contains("drills"), "older programs read it");
        assert_eq!(plain.fence_within(), Duration::from_secs(5), "4 s of lease and 1 s of silence");
        let drills = DrillSpec {
            canary: CanaryWhen::Always,
            fence_within: Some(Duration::from_secs(2)),
            ..DrillSpec::default()
        };
        let spec = ClusterSpec { drills, ..plain };
        let text = document::encode(&spec);
        assert!(text.contains("\"always\"") && text.contains("\"2s\""), "{text}");
        assert_eq!(document::decode(text.as_bytes()), Ok(spec.clone()));
        assert_eq!(spec.fence_within(), Duration::from_secs(2));
    }
}
