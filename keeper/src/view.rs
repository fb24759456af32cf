//! What the keeper's endpoints answer from: one value, replaced by the keeper whenever something changed.
//!
//! The one rule: whether this member is the primary is judged at the moment of asking, not when the view was made.

use proto::report::{Server, Stream};
use proto::status::{MemberStatus, StandbyLag};
use proto::{ClusterState, Epoch, Moment, Timeline};
use serde::Serialize;

use crate::lag::Behind;

/// What the endpoints answer from; the keeper replaces it whenever something changed.
#[derive(Debug, Clone)]
pub struct View {
    pub status: MemberStatus,
    pub cluster: Option<ClusterState>,
    pub serving: Serving,
    /// Until when a primary may serve; `None`: no bound is needed.
    pub serve_until: Option<Moment>,
    /// How far this standby is behind its primary, where that is known.
    pub lag: Option<Behind>,
    /// Reads on this standby see every commit that was acknowledged before.
    pub fresh: bool,
    /// Whether this standby acknowledges commits.
    pub synchronous: bool,
}

/// Whom this member serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serving {
    /// Not open, or fenced.
    Nobody,
    /// Writes and reads.
    Primary,
    /// Reads.
    Standby,
}

impl View {
    /// Returns whether writes may go here at `now`: the right to serve ends by itself when nobody renews it.
    pub fn is_primary(&self, now: Moment) -> bool {
        self.serving == Serving::Primary && self.serve_until.is_none_or(|until| now < until)
    }

    /// Returns whom this member serves at `now`.
    pub fn serving_at(&self, now: Moment) -> Serving {
        match self.serving {
            Serving::Primary if !self.is_primary(now) => Serving::Nobody,
            other => other,
        }
    }

    /// Returns the timeline of the running PostgreSQL, if it is known.
    pub fn timeline(&self) -> Option<Timeline> {
        match self.status.report.server {
            Server::Standby { timeline } | Server::Primary { timeline } => Some(timeline),
            Server::Unknown | Server::Stopped | Server::Starting | Server::Dead { .. } => {
                self.status.positions.map(|p| p.timeline)
            }
        }
    }

    /// Returns the epoch in which this member serves or streams, otherwise the one it has promised.
    pub fn epoch(&self) -> Epoch {
        let report = &self.status.report;
        match (report.opened, report.stream) {
            (Some(opened), _) => opened.epoch,
            (None, Stream::Live { epoch, .. }) => epoch,
            (None, Stream::None | Stream::Silent { .. }) => report.promise,
        }
    }

    /// Returns the document of `GET /status`, with the times as they stand at `now`.
    pub fn status_at(&self, now: Moment, asked: proto::WallTime) -> MemberStatus {
        let left = self.serve_until.map(|until| until.since(now));
        let serve_for_ms = left.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let lag = self.lag.map(|behind| StandbyLag {
            bytes: behind.bytes,
            ms: u64::try_from(behind.time(now).as_millis()).unwrap_or(u64::MAX),
        });
        MemberStatus { serve_for_ms, lag, fresh: self.fresh, asked, ..self.status.clone() }
    }
}
