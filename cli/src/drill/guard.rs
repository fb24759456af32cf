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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::drill::Drill;
    use proto::history::{HistoryKind, HistoryRecord, PhaseRecord};
    use proto::orders::Pause;
    use proto::{ClusterSpec, ClusterState, Epoch, RequestId, WallTime, document};
    use sentinel::observe::Observations;

    use super::*;

    const NOW: WallTime = WallTime(1_800_000_000_000);
    const WISHES: Wishes =
        Wishes { most_lag: Duration::from_secs(10), calm_before: Duration::from_secs(3600) };

    /// An open cluster with nobody's report: the one objection to it is that.
    fn seen() -> Seen {
        let state = serde_json::json!({
            "format_version": 1, "number": 9, "etcd_cluster_id": "1", "system_identifier": null, "epoch": 2,
            "phase": { "name": "open" }, "primary": "a", "sealing": null, "last_cfg": 4, "timeline": 2,
            "cfgs": [], "highest_timeline": 2, "chosen": null, "open_at_once": false, "epochs": [],
            "members": {}, "restart": null,
        });
        let state: ClusterState = document::decode(state.to_string().as_bytes()).unwrap();
        Seen {
            spec: ClusterSpec::default(),
            state,
            observed: Observations::default(),
            leads: true,
            drill: None,
            runner: None,
            records: Vec::new(),
            answers: BTreeMap::new(),
            history: Vec::new(),
            scheduled: Vec::new(),
            lag: BTreeMap::new(),
            now: NOW,
        }
    }

    fn says(change: impl FnOnce(&mut Seen)) -> String {
        let mut seen = seen();
        let before = objections(&seen, LiveFault::StandbyCrash, WISHES);
        change(&mut seen);
        let mut after = objections(&seen, LiveFault::StandbyCrash, WISHES);
        after.retain(|objection| !before.contains(objection));
        after.join("; ")
    }

    fn failover(began: WallTime) -> HistoryRecord {
        HistoryRecord {
            kind: HistoryKind::Failover,
            epoch: Epoch(2),
            restart: 0,
            from: None,
            to: None,
            cause: "primary a is silent".into(),
            evidence: Vec::new(),
            chosen: None,
            rejected: Vec::new(),
            phases: vec![PhaseRecord { name: "notice".into(), start: began, end: None }],
            rejoined: Vec::new(),
            notes: Vec::new(),
            redundant: None,
        }
    }

    #[test]
    fn each_guard_rail_refuses_and_says_why() {
        assert!(says(|seen| seen.leads = false).contains("no sentinel leads"));
        let b = || "b".parse().unwrap();
        let lags =
            |seconds| says(|seen| seen.lag = BTreeMap::from([(b(), Duration::from_secs(seconds))]));
        assert!(lags(11).contains("b is 11s behind"));
        assert_eq!(lags(9), "");
        let pause = Pause {
            id: RequestId::from_random(1),
            by: "ann@north".into(),
            reason: "a new disk".into(),
            since: NOW,
            until: NOW.plus(Duration::from_secs(60)),
            lasting: Duration::from_secs(60),
        };
        assert!(says(|seen| seen.state.orders.pause = Some(pause)).contains("a new disk"));
        let drill = Drill {
            id: RequestId::from_random(2),
            fault: LiveFault::Crash,
            target: b(),
            by: "bob@south".into(),
            epoch: Epoch(2),
            bound: Duration::from_secs(5),
        };
        assert!(says(|seen| seen.runner = Some(drill)).contains("bob@south is under way"));
    }

    #[test]
    fn an_incident_stands_in_the_way_for_a_while_and_a_drill_is_none() {
        let ago = |seconds: i64| WallTime(NOW.0 - seconds * 1000);
        assert!(says(|seen| seen.history.push(failover(ago(60)))).contains("primary a is silent"));
        assert_eq!(says(|seen| seen.history.push(failover(ago(3601)))), "");
        let of_a_drill = says(|seen| {
            seen.history.push(failover(ago(60)));
            seen.records.push(proto::drill::DrillRecord {
                id: RequestId::from_random(3),
                fault: LiveFault::Crash,
                target: None,
                by: "bob@south".into(),
                seed: 1,
                begun: ago(61),
                ended: Some(ago(50)),
                verdict: proto::drill::Verdict::Passed,
                reasons: Vec::new(),
                figures: proto::drill::Figures::default(),
            });
        });
        assert_eq!(of_a_drill, "");
    }
}
