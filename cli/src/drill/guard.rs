//! The guard rails: why a drill may not begin, or may not go on.

use std::time::Duration;

use proto::drill::LiveFault;

use super::seen::Seen;

/// A switchover that is to begin so soon is not disturbed.
const SOON: Duration = Duration::from_secs(600);

/// What an operator wants of a cluster that is drilled.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    pub most_lag: Duration,
    /// No drill begins so soon after an incident.
    pub calm_before: Duration,
}

/// Returns why `fault` may not begin now; empty if it may.
pub fn objections(seen: &Seen, fault: LiveFault, wishes: Wishes) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(drill) = seen.runner.as_ref().or(seen.drill.as_ref()) {
        all.push(format!("drill {} ({}) of {} is under way", drill.id, drill.fault, drill.by));
    }
    all.extend(unfit(seen));
    if seen.with_role(fault.role()).is_empty() {
        all.push(format!("no member has the role that {fault} hits"));
    }
    let soon = seen.scheduled.iter().find(|s| s.at <= seen.now.plus(SOON));
    all.extend(soon.map(|s| format!("switchover {} is scheduled for {}", s.id, s.at)));
    for (member, lag) in seen.lag.iter().filter(|(_, lag)| **lag > wishes.most_lag) {
        let most = wishes.most_lag;
        all.push(format!("{member} is {lag:?} behind, more than {most:?}"));
    }
    if let Some((record, at)) = seen.last_incident()
        && seen.now.0 - at.0 < i64::try_from(wishes.calm_before.as_millis()).unwrap_or(i64::MAX)
    {
        all.push(format!("an incident at {at}: {}; see `pgdeputy history`", record.cause));
    }
    all
}

/// Returns what is wrong with the cluster itself.
pub fn unfit(seen: &Seen) -> Vec<String> {
    let mut all = Vec::new();
    if !seen.leads {
        all.push("no sentinel leads".to_owned());
    }
    if let Some(pause) = &seen.state.orders.pause {
        all.push(format!("paused by {} until {}: {}", pause.by, pause.until, pause.reason));
    }
    for member in seen.state.orders.leaving.keys() {
        all.push(format!("{member} is on its way out of the cluster"));
    }
    all.extend(seen.lacks().map(|lacks| format!("not fully redundant: {lacks}")));
    for (member, report) in &seen.observed.members {
        all.extend(report.problems.iter().map(|p| format!("problem of {member}: {p}")));
    }
    all
}
