//! The guard rails: why a drill may not begin, or may not go on.

use std::time::Duration;

use proto::RequestId;
use proto::drill::{Hits, LiveFault};

use super::Limits;
use super::seen::Seen;

/// A switchover that is to begin so soon is not disturbed.
const SOON: Duration = Duration::from_secs(600);

/// What the budget is of.
const BUDGET_OF: Duration = Duration::from_secs(30 * 86_400);

/// Returns why `fault` may not begin now; empty if it may.
pub fn objections(seen: &Seen, fault: LiveFault, limits: &Limits) -> Vec<String> {
    let mut all = unfit(seen, None);
    if seen.targets(fault).is_empty() {
        all.push(format!("there is nobody whom {fault} could hit"));
    }
    let sentinels = seen.crew.sentinels.len();
    if fault.hits() == Hits::Leader && sentinels < 2 {
        all.push(format!("{sentinels} sentinel lives: no other one could lead"));
    }
    let soon = seen.scheduled.iter().find(|s| s.at <= seen.now.plus(SOON));
    all.extend(soon.map(|s| format!("switchover {} is scheduled for {}", s.id, s.at)));
    for (member, lag) in seen.lag.iter().filter(|(_, lag)| **lag > limits.most_lag) {
        let most = limits.most_lag;
        all.push(format!("{member} is {lag:?} behind, more than {most:?}"));
    }
    if let Some((record, at)) = seen.last_incident()
        && seen.now.0 - at.0 < i64::try_from(limits.calm_before.as_millis()).unwrap_or(i64::MAX)
    {
        all.push(format!("an incident at {at}: {}; see `pgdeputy history`", record.cause));
    }
    let frozen = limits.freeze.iter().find(|f| f.from <= seen.now && seen.now < f.to);
    all.extend(frozen.map(|f| format!("no drill is wanted from {} to {}", f.from, f.to)));
    all.extend(spent(seen, limits));
    all
}

/// Returns that the budget is spent, if so.
fn spent(seen: &Seen, limits: &Limits) -> Option<String> {
    let budget = limits.budget?;
    let recent = seen.records.iter().filter(|r| r.begun.plus(BUDGET_OF) > seen.now);
    let away: u64 = recent.filter_map(|r| r.figures.write_gap_ms).sum();
    (u128::from(away) >= budget.as_millis()).then(|| {
        format!(
            "the budget is spent: drills kept writes away for {away} ms in 30 days, of {budget:?}"
        )
    })
}

/// Returns why nothing may be broken or sent away, whatever it is, by anybody but who holds the lock `own`.
pub fn unfit(seen: &Seen, own: Option<&RequestId>) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(lock) = seen.lock.as_ref().filter(|lock| Some(&lock.id) != own) {
        all.push(format!("{lock} is under way"));
    }
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

    use proto::drill::{DrillRecord, Figures, Verdict};
    use proto::drill_lock::{DrillLock, DrillWork};
    use proto::history::{HistoryKind, HistoryRecord, PhaseRecord};
    use proto::orders::Pause;
    use proto::{ClusterSpec, ClusterState, Epoch, WallTime, document};
    use sentinel::observe::Observations;

    use super::super::crew::Crew;
    use super::*;

    const NOW: WallTime = WallTime(1_800_000_000_000);

    fn limits() -> Limits {
        Limits {
            way: Default::default(),
            write_gap_within: None,
            redundant_within: None,
            fence_within: None,
            most_lag: Duration::from_secs(10),
            calm_before: Duration::from_secs(3600),
            budget: Some(Duration::from_secs(5)),
            freeze: vec![
                super::super::freeze("2027-12-20T00:00:00Z/2028-01-03T00:00:00Z").unwrap(),
            ],
        }
    }

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
            lock: None,
            crew: Crew::default(),
            records: Vec::new(),
            answers: BTreeMap::new(),
            coverage: BTreeMap::new(),
            canary: None,
            canary_holder: None,
            history: Vec::new(),
            scheduled: Vec::new(),
            lag: BTreeMap::new(),
            now: NOW,
        }
    }

    fn says(change: impl FnOnce(&mut Seen)) -> String {
        let mut seen = seen();
        let before = objections(&seen, LiveFault::StandbyCrash, &limits());
        change(&mut seen);
        let mut after = objections(&seen, LiveFault::StandbyCrash, &limits());
        after.retain(|objection| !before.contains(objection));
        after.join("; ")
    }

    fn ago(seconds: i64) -> WallTime {
        WallTime(NOW.0 - seconds * 1000)
    }

    fn record(begun: WallTime) -> DrillRecord {
        DrillRecord {
            id: RequestId::from_random(3),
            fault: LiveFault::Crash.into(),
            target: None,
            by: "bob@south".into(),
            seed: 1,
            begun,
            ended: Some(begun.plus(Duration::from_secs(11))),
            verdict: Verdict::Passed,
            reasons: Vec::new(),
            figures: Figures::default(),
        }
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
        let mut alone = seen();
        alone.crew.leader = Some("s1".into());
        alone.crew.sentinels.insert("s1".into(), None);
        let alone = objections(&alone, LiveFault::Sentinel, &limits()).join("; ");
        assert!(alone.contains("no other one could lead"), "{alone}");
        let nobody = objections(&seen(), LiveFault::Haproxy, &limits()).join("; ");
        assert!(nobody.contains("nobody whom haproxy could hit"), "{nobody}");
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
        let lock = |work| DrillLock { id: RequestId::from_random(2), by: "bob@south".into(), work };
        let drill = lock(DrillWork::Drill { fault: LiveFault::Crash });
        assert!(says(|seen| seen.lock = Some(drill)).contains("(crash) of bob@south is under way"));
        let reboots = lock(DrillWork::Reboots { member: Some(b()) });
        let by_another = says(|seen| seen.lock = Some(reboots.clone()));
        assert!(by_another.contains("(reboot-all, b now) of bob@south is under way"));
        let own = Seen { lock: Some(reboots.clone()), ..seen() };
        assert_eq!(unfit(&own, Some(&reboots.id)), unfit(&seen(), None), "its own is no objection");
    }

    #[test]
    fn a_frozen_time_and_a_spent_budget_stand_in_the_way() {
        let christmas =
            WallTime("2027-12-24T18:00:00Z".parse::<jiff::Timestamp>().unwrap().as_millisecond());
        assert!(says(|seen| seen.now = christmas).contains("no drill is wanted from 2027-12-20"));
        let cost = |begun: WallTime, ms| {
            let mut record = record(begun);
            record.figures.write_gap_ms = Some(ms);
            says(|seen| seen.records = vec![record.clone(), record])
        };
        assert_eq!(cost(ago(3600), 2400), "");
        assert!(cost(ago(3600), 2500).contains("kept writes away for 5000 ms"));
        assert_eq!(cost(ago(31 * 86_400), 2500), "", "that is long ago");
    }

    #[test]
    fn an_incident_stands_in_the_way_for_a_while_and_a_drill_is_none() {
        assert!(says(|seen| seen.history.push(failover(ago(60)))).contains("primary a is silent"));
        assert_eq!(says(|seen| seen.history.push(failover(ago(3601)))), "");
        let of_a_drill = says(|seen| {
            seen.history.push(failover(ago(60)));
            seen.records.push(record(ago(61)));
        });
        assert_eq!(of_a_drill, "");
    }
}
