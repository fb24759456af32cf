//! Whether a read on this standby sees every commit that was acknowledged before it.
//!
//! It does while every set that can acknowledge contains this member, commits wait until they are *replayed*, and all
//! that was acknowledged before this became so is replayed too. For the last a mark is taken of what this member had
//! flushed when its server and the Cfg were first seen together: a Cfg is alone on record only once its voters have
//! flushed all that earlier ones acknowledged (I4), and a server streams only after it has replayed what it had.

use proto::{CfgId, ClusterState, Lsn};

use crate::facts::{ClusterView, Facts, Process};
use crate::postgres::probe::SqlFacts;

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub struct Freshness {
    mark: Option<Mark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// A server that starts again has to replay again.
    pid: u32,
    cfg: CfgId,
    /// What must be replayed.
    lsn: Lsn,
    reached: bool,
}

impl Freshness {
    /// Returns whether reads here are fresh by all that this keeper knows.
    pub fn look(&mut self, view: &ClusterView, facts: &Facts) -> bool {
        let Some((pid, cfg, sql)) = grounds(view, facts) else {
            self.mark = None;
            return false;
        };
        let (Some(flushed), Some(replayed)) = (sql.flush_lsn, sql.replay_lsn) else { return false };
        let known = self.mark.filter(|mark| (mark.pid, mark.cfg) == (pid, cfg));
        let mut mark = known.unwrap_or(Mark { pid, cfg, lsn: flushed, reached: false });
        mark.reached |= replayed >= mark.lsn;
        self.mark = Some(mark);
        mark.reached
    }
}

/// Returns the server and the Cfg by which this member has part in every acknowledgement; none if it has not, or if that
/// cannot be known now.
fn grounds<'a>(view: &ClusterView, facts: &'a Facts) -> Option<(u32, CfgId, &'a SqlFacts)> {
    let known = !view.is_copy() && view.frozen.is_none() && !facts.local.etcd_away;
    let state: &ClusterState = view.state.as_ref().filter(|s| known && s.is_open())?;
    let waits = view.spec.as_ref()?.waits_for_replay() && facts.local.remote_apply == Some(true);
    if !waits || !state.always_acknowledges(&facts.member) {
        return None;
    }
    let cfg = state.newest_cfg()?;
    let Process::Running { pid } = facts.local.process else { return None };
    let sql = facts.sql.as_ref().filter(|s| s.in_recovery)?;
    let receiver = sql.receiver.as_ref().filter(|r| r.streaming && r.timeline == state.timeline)?;
    let votes = receiver.name.as_deref() == Some(cfg.wire_name(&facts.member).as_str());
    votes.then_some((pid, cfg.id, sql))
}
