//! The history: one record per change, written in the very transaction that makes the change.
//!
//! The one rule: records are for people. No decision reads them back.

use std::collections::BTreeMap;

use proto::explanation::Rejection;
use proto::history::{HistoryKind, HistoryRecord, Note, PhaseRecord, RejoinRecord};
use proto::report::{MemberReport, RejoinBy, RejoinOutcome};
use proto::state::{Switchover, SwitchoverStep};
use proto::{ClusterState, Epoch, MemberName};

use crate::decide::base::Choice;
use crate::decide::health::Loss;
use crate::decide::{Inputs, Step, switchover, synchronous};
use crate::observe::Condition;
use crate::plan::{HistoryWrite, Verdict};

/// Returns epoch and restart number of the record that is being written in `state`.
pub fn current(state: &ClusterState) -> (Epoch, u64) {
    if let Some(sealing) = state.sealing {
        return (sealing, 0);
    }
    if state.handing_over().is_some() {
        return (state.epoch.next(), 0);
    }
    // The founder's first start is an order too, and belongs to the founding.
    let founding = |number: u64| state.epoch == Epoch(1) && number == 1;
    match &state.restart {
        Some(order) if order.epoch == state.epoch && !founding(order.number) => {
            (state.epoch, order.number)
        }
        Some(_) | None => (state.epoch, 0),
    }
}

pub(crate) fn founding(inputs: &Inputs, founder: &MemberName) -> Vec<HistoryWrite> {
    let mut record = blank(HistoryKind::Founding, Epoch(1), 0, format!("{founder} ran initdb"));
    record.to = Some(founder.clone());
    record.advance(Some("promote"), inputs.wall);
    vec![write(record)]
}

pub(crate) fn begin_failover(inputs: &Inputs, loss: &Loss, sealing: Epoch) -> Vec<HistoryWrite> {
    let record = blank(HistoryKind::Failover, sealing, 0, loss.kind.cause(inputs.primary()));
    begin(inputs, loss, record, "seal")
}

pub(crate) fn begin_restart(inputs: &Inputs, loss: &Loss, number: u64) -> Vec<HistoryWrite> {
    let cause = loss.kind.cause(inputs.primary());
    let mut record = blank(HistoryKind::Restart, inputs.state.epoch, number, cause);
    record.to = Some(inputs.primary().clone());
    begin(inputs, loss, record, "restart")
}

/// Begins the record of a switchover when it is past recall. One that is called off before leaves a note in the record
/// of the epoch that goes on.
pub(crate) fn begin_switchover(
    inputs: &Inputs,
    switchover: &Switchover,
    left: &BTreeMap<MemberName, u64>,
) -> Vec<HistoryWrite> {
    let cause = format!("{} asked for a switchover to {}", switchover.by, switchover.target);
    let epoch = inputs.state.epoch.next();
    let mut record = blank(HistoryKind::Switchover, epoch, 0, cause);
    record.from = Some(inputs.primary().clone());
    record.evidence.push(format!("{} has written its checkpoint", inputs.primary()));
    record
        .evidence
        .extend(left.iter().map(|(m, bytes)| format!("{m} has {bytes} bytes left to replay")));
    record.advance(Some("checkpoint"), switchover.started.min(inputs.wall));
    if let Some(SwitchoverStep::Hold { since, .. }) = inputs.state.switchover().map(|s| &s.step) {
        record.advance(Some("hold"), (*since).min(inputs.wall));
        record.evidence.extend(switchover::holders(inputs).iter().map(|proxy| {
            let holds = proxy.holds_for(&switchover.request);
            format!(
                "{} {}",
                proxy.id,
                if holds { "holds its clients" } else { "does not hold its clients" }
            )
        }));
    }
    record.evidence.extend(inputs.seen.proxies.values().flat_map(|proxy| proxy.cut()));
    record.advance(Some("stop"), inputs.wall);
    ended(inputs).into_iter().chain([write(record)]).collect()
}

/// Begins the next phase of the record that is being written.
pub(crate) fn advance(inputs: &Inputs, phase: &str, evidence: Vec<String>) -> Vec<HistoryWrite> {
    let record = inputs.seen.history.clone().map(|mut record| {
        record.advance(Some(phase), inputs.wall);
        record.evidence.extend(evidence);
        write(record)
    });
    record.into_iter().collect()
}

/// Ends what the record before still counts still counts, and begins the new one with what was noticed.
fn begin(
    inputs: &Inputs,
    loss: &Loss,
    mut record: HistoryRecord,
    phase: &str,
) -> Vec<HistoryWrite> {
    record.from = Some(inputs.primary().clone());
    record.evidence = loss.evidence.clone();
    // Another host's wall clock may be ahead of this one.
    record.advance(Some("notice"), loss.since.min(inputs.wall));
    record.advance(Some(phase), inputs.wall);
    ended(inputs).into_iter().chain([write(record)]).collect()
}

/// Returns the present record, ended.
fn ended(inputs: &Inputs) -> Option<HistoryWrite> {
    let mut before = inputs.seen.history.clone().filter(is_open)?;
    before.advance(None, inputs.wall);
    Some(write(before))
}

pub(crate) fn promote(inputs: &Inputs, epoch: Epoch, choice: &Choice) -> Vec<HistoryWrite> {
    let mut record = inputs.seen.history.clone().unwrap_or_else(|| {
        blank(HistoryKind::Failover, epoch, 0, "the record of the beginning is lost".into())
    });
    let base = inputs.wall_since(&Condition::Base { sealing: epoch });
    record.advance(Some("choose"), base);
    record.advance(Some("promote"), inputs.wall);
    record.to = Some(choice.member.clone());
    record.chosen = Some(choice.seal.position);
    record.rejected = choice
        .rejected
        .iter()
        .map(|(member, reject)| Rejection { member: member.clone(), reason: reject.to_string() })
        .collect();
    vec![write(record)]
}

/// Notes something in the record of the present change.
pub(crate) fn note(inputs: &Inputs, text: String) -> Vec<HistoryWrite> {
    let record = inputs.seen.history.clone().map(|mut record| {
        add_note(&mut record, Note { at: inputs.wall, text });
        write(record)
    });
    record.into_iter().collect()
}

fn add_note(record: &mut HistoryRecord, note: Note) {
    record.notes.push(note);
    let surplus = record.notes.len().saturating_sub(NOTES_KEPT);
    record.notes.drain(..surplus);
}

/// How many notes one record keeps: an epoch may last for years.
const NOTES_KEPT: usize = 50;

pub(crate) fn opened(inputs: &Inputs) -> Vec<HistoryWrite> {
    let record = inputs.seen.history.clone().map(|mut record| {
        record.advance(Some("redundancy"), inputs.wall);
        write(record)
    });
    record.into_iter().collect()
}

/// Notes who came back, and when the cluster was whole again.
pub(crate) fn follow(inputs: &Inputs) -> Option<Step> {
    let before = inputs.seen.history.as_ref().filter(|r| r.redundant.is_none())?;
    let mut record = before.clone();
    let mut news = Vec::new();
    for name in inputs.state.members.keys() {
        let Some(report) = inputs.report(name) else { continue };
        news.extend(note_failure(&mut record, report, inputs.state));
        let Some(rejoin) = rejoined(report, inputs.state) else { continue };
        if !record.rejoined.iter().any(|r| r.member == rejoin.member && r.start == rejoin.start) {
            news.push(format!("{name} is back"));
            record.rejoined.push(rejoin);
        }
    }
    if synchronous::is_redundant(inputs) {
        record.advance(None, inputs.wall);
        record.redundant = Some(inputs.wall);
        news.push("every member is in its place".into());
    }
    if record == *before {
        return None;
    }
    let verdict = Verdict::Record { history: vec![write(record)], why: news.join("; ") };
    Some(Step { verdict, wake_at: None })
}

/// Notes a return that failed, and returns that as news. One that fails again for the same reason is noted once.
fn note_failure(
    record: &mut HistoryRecord,
    report: &MemberReport,
    state: &ClusterState,
) -> Option<String> {
    let rejoin = report.rejoin.as_ref().filter(|r| r.epoch == state.epoch)?;
    let RejoinOutcome::Failed { ended, problem } = &rejoin.outcome else { return None };
    let way = match rejoin.by {
        RejoinBy::Follow => "followed",
        RejoinBy::Rewind => "rewound",
        RejoinBy::Copy => "copied anew",
    };
    let begin = format!("{} could not be {way}: ", report.member);
    let text = format!("{begin}{problem}");
    let known = record.notes.iter().filter(|note| note.text.starts_with(&begin));
    if known.clone().any(|note| note.text == text) || known.count() >= FAILURES_NOTED {
        return None;
    }
    add_note(record, Note { at: *ended, text: text.clone() });
    Some(text)
}

/// How many failures of one way of one member an epoch's record notes: reasons that carry positions differ each time.
const FAILURES_NOTED: usize = 5;

fn rejoined(report: &MemberReport, state: &ClusterState) -> Option<RejoinRecord> {
    let rejoin = report.rejoin.as_ref().filter(|r| r.epoch == state.epoch)?;
    match rejoin.outcome {
        RejoinOutcome::Done { ended } => Some(RejoinRecord {
            member: report.member.clone(),
            by: rejoin.by,
            reason: rejoin.reason.clone(),
            start: rejoin.started,
            end: ended,
            acknowledged: rejoin.details.discarded.as_ref().map(|d| d.verdict(state)),
            details: rejoin.details.clone(),
        }),
        RejoinOutcome::Running { .. } | RejoinOutcome::Failed { .. } => None,
    }
}

fn blank(kind: HistoryKind, epoch: Epoch, restart: u64, cause: String) -> HistoryRecord {
    HistoryRecord {
        kind,
        epoch,
        restart,
        from: None,
        to: None,
        cause,
        evidence: Vec::new(),
        chosen: None,
        rejected: Vec::new(),
        phases: Vec::new(),
        rejoined: Vec::new(),
        notes: Vec::new(),
        redundant: None,
    }
}

fn is_open(record: &HistoryRecord) -> bool {
    record.phases.last().is_some_and(|p: &PhaseRecord| p.end.is_none())
}

fn write(record: HistoryRecord) -> HistoryWrite {
    HistoryWrite { epoch: record.epoch, restart: record.restart, record }
}
