//! What a keeper knows, as the product's `reconcile` and `report` take it, and what they answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keeper::action::Action;
use keeper::facts::{ClusterView, Facts, Local, Names, Process};
use keeper::member_files::{MemberFiles, RejoinMarker, RejoinPhase, Role};
use keeper::postgres::probe::{Receiver, SqlFacts};
use keeper::postgres::settings::{Access, Settings, StreamName, Upstream};
use keeper::reconcile::reconcile;
use keeper::report::{Identity, report};
use proto::assignment::{Assignment, Follow, Lead, assignment};
use proto::cfg::{joining_name, wire_name};
use proto::report::{Confirmed, DataDirectory, Opened, RejoinBy, Seal};
use proto::{
    ClusterState, Epoch, Lsn, MemberName, Moment, StateNumber, Timeline, WalPosition, WallTime,
};
use store::LeaseId;

use super::documents::{Documents, Memory, STORE, SYSTEM};
use super::mistakes;
use super::state::{At, Known, MEMBERS, Marker, Member, Name, Server, State, Step};

const NOW: Moment = Moment::since_boot(Duration::from_secs(1_000));
const LEASE: LeaseId = LeaseId(1);
/// Deaths found at a keeper's start, apart from those that it saw.
const FOUND_DOWN: i64 = 100;

/// All that one decision of a keeper rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question {
    member: u8,
    /// Without what the decider is not told.
    me: Member,
    primary_report: Option<u16>,
    timeline: u8,
    sealed_timeline: u8,
    receives: Option<u8>,
}

/// What the product answers.
pub struct Decided {
    pub action: Action,
    pub report: u16,
}

#[derive(Default)]
pub struct Keepers {
    memory: Memory<Question, Arc<Decided>>,
}

impl Keepers {
    /// Returns how many distinct situations were decided.
    pub fn decisions(&self) -> usize {
        self.memory.len()
    }

    /// Returns what the keeper of `member` decides on what it read last, and what it would report.
    pub fn decide(
        &self,
        documents: &Documents,
        mutant: Option<&str>,
        question: Question,
    ) -> Arc<Decided> {
        self.memory.answer(question, || Arc::new(work_out(documents, mutant, &question)))
    }
}

/// Returns what the keeper of `member` knows.
pub fn question(documents: &Documents, state: &State, member: usize) -> Question {
    let me = &state.members[member];
    let view = documents.agreed.get(me.view);
    Question {
        member: member as u8,
        me: Member { senders: [None; MEMBERS], began: 0, step: Step::None, ..*me },
        primary_report: state.reports[view.primary],
        timeline: state.timeline(me.at),
        sealed_timeline: me.seal.map_or(0, |seal| state.timeline(seal.at)),
        receives: receives(documents, state, member),
    }
}

/// Returns the timeline that the receiver of `member` streams.
pub fn receives(documents: &Documents, state: &State, member: usize) -> Option<u8> {
    let me = &state.members[member];
    let from = source(documents, state, me.receiver?)?;
    let theirs = state.members[from].at;
    // A stream goes on to the next timeline as soon as it has all of the one before.
    let at_the_end =
        state.covers(theirs, me.at) && me.at.lsn >= state.branches[theirs.branch as usize].fork;
    Some(if at_the_end { state.timeline(theirs) } else { state.timeline(me.at) })
}

/// Returns whose address stands in the settings of whoever streams under `name`.
pub fn source(documents: &Documents, state: &State, name: Name) -> Option<usize> {
    documents.agreed.get(state.agreed).primaries.get(&name.epoch).copied()
}

fn work_out(documents: &Documents, mutant: Option<&str>, question: &Question) -> Decided {
    let member = question.member as usize;
    let me = &question.me;
    let agreed = documents.agreed.get(me.view);
    let mut view = view(documents, me.view);
    if let Some(number) = question.primary_report {
        let name = documents.names[agreed.primary].clone();
        view.reports.insert(name, (**documents.reports.get(number)).clone());
    }
    let mut facts = facts(documents, question, &agreed.state);
    let action = loop {
        let action = reconcile(&view, &facts, NOW);
        match mistakes::in_action(mutant, &view, &facts, action) {
            // Slots and PostgreSQL's settings are no part of the model: they are always in order.
            Action::KeepSlots { members, primary } => {
                facts.local.slots_for = Some((members, primary))
            }
            Action::TakeSettings(settings) => facts.local.accepted = Some(settings),
            action => break action,
        }
    };
    let identity = identity(documents, member, me);
    let report = report(&identity, &view, &facts, BTreeSet::new());
    Decided { action, report: documents.report(report) }
}

/// The agreed state as a keeper read it, without reports.
pub fn view(documents: &Documents, number: u16) -> ClusterView {
    ClusterView {
        spec: Some(documents.spec.clone()),
        state: Some((*documents.agreed.get(number).state).clone()),
        state_revision: 1,
        etcd_cluster_id: STORE.to_owned(),
        reports: BTreeMap::new(),
        ..ClusterView::default()
    }
}

fn identity(documents: &Documents, member: usize, me: &Member) -> Identity {
    Identity {
        postgres_version: 150_018,
        postgres_address: address(documents, member),
        http_address: format!("{}:8008", documents.names[member]),
        zone: None,
        started: WallTime(FOUND_DOWN + i64::from(me.deaths)),
    }
}

fn address(documents: &Documents, member: usize) -> String {
    format!("{}:5432", documents.names[member])
}

fn facts(documents: &Documents, question: &Question, agreed: &ClusterState) -> Facts {
    let (member, me) = (question.member as usize, &question.me);
    let position = position(agreed, me.at, question.timeline);
    let runs = me.server != Server::Down;
    Facts {
        member: documents.names[member].clone(),
        files: files(documents, member, me),
        data: DataDirectory::Present,
        sql: runs.then(|| sql(documents, question)),
        known: None,
        local: Local {
            process: match (runs, me.exited) {
                (true, _) => Process::Running { pid: 1 },
                (false, true) => {
                    Process::Exited { noticed: WallTime(me.deaths.into()), gone: true }
                }
                (false, false) => Process::None,
            },
            settings: Some(settings(documents, me)),
            accepted: Some(documents.spec.postgres.clone()),
            seal: me.seal.and_then(|seal| {
                let position = self::position(agreed, seal.at, question.sealed_timeline)?;
                Some(Seal {
                    sealing: Epoch(seal.sealing.into()),
                    position,
                    replayed: position.lsn,
                    clean: seal.clean,
                })
            }),
            opened: me.opened.map(|restart| opened(agreed, me, restart)),
            confirmed: me.confirmed.map(|proven| Confirmed {
                cfg: documents.cfgs.get(proven.cfg.into()).id,
                lsn: Lsn(proven.lsn.into()),
                voters: documents.members(proven.voters),
            }),
            end_of_wal: position.filter(|_| me.scanned),
            started_sealed: position.filter(|_| me.started_sealed),
            streamed: me.streamed.map(|timeline| Timeline(timeline.into())),
            names: names(documents, me.known),
            right: me.right.then_some((Epoch(me.epoch.into()), LEASE)),
            ..Local::default()
        },
        lease: Some(LEASE),
    }
}

/// Returns the position of WAL that ends at `at`; `None` where the state does not know the timeline.
pub fn position(agreed: &ClusterState, at: At, timeline: u8) -> Option<WalPosition> {
    let timeline = Timeline(timeline.into());
    let epoch = agreed.epoch_of(timeline)?;
    Some(WalPosition { epoch, lsn: Lsn(at.lsn.into()), timeline })
}

fn opened(agreed: &ClusterState, me: &Member, restart: u8) -> Opened {
    let epoch = Epoch(me.epoch.into());
    let record = agreed.epoch_record(epoch);
    let parent = agreed.chosen.map_or(Lsn(0), |chosen| chosen.lsn);
    Opened {
        epoch,
        timeline: record.map_or(agreed.timeline, |r| r.timeline),
        start_lsn: record.and_then(|r| r.start_lsn).unwrap_or(parent),
        restart: restart.into(),
    }
}

fn names(documents: &Documents, known: Known) -> Names {
    match known {
        Known::Unproven => Names::Unproven,
        Known::Impossible => Names::Impossible,
        Known::Proven(cfg) => Names::Proven(documents.cfgs.get(cfg.into()).id),
    }
}

fn sql(documents: &Documents, question: &Question) -> SqlFacts {
    let me = &question.me;
    let lsn = Some(Lsn(me.at.lsn.into()));
    let receiver = question.receives.zip(me.receiver).map(|(timeline, name)| Receiver {
        streaming: true,
        timeline: Timeline(timeline.into()),
        silent_for: Duration::ZERO,
        name: Some(text(&documents.names[question.member as usize], name)),
        primary_end: None,
    });
    SqlFacts {
        asked: NOW,
        in_recovery: me.server == Server::Standby,
        timeline: Timeline(question.timeline.into()),
        flush_lsn: lsn,
        replay_lsn: lsn,
        replayed_commit_age: None,
        standby_names: String::new(),
        receiver,
        walsenders: Vec::new(),
    }
}

/// Returns the name on the wire.
pub fn text(member: &MemberName, name: Name) -> String {
    let epoch = Epoch(name.epoch.into());
    match name.round {
        Some(round) => wire_name(member, epoch, round.into()),
        None => joining_name(member, epoch),
    }
}

fn settings(documents: &Documents, me: &Member) -> Settings {
    let primaries = &documents.agreed.get(me.view).primaries;
    let upstream = me.upstream.and_then(|name| {
        Some(Upstream {
            epoch: Epoch(name.epoch.into()),
            host: documents.names[*primaries.get(&name.epoch)?].to_string(),
            port: 5432,
            name: match name.round {
                Some(round) => StreamName::Voter { round: round.into() },
                None => StreamName::Joining,
            },
        })
    });
    let access = if me.open { Access::Open } else { Access::Closed };
    Settings { upstream, access, ..Settings::cut_off() }
}

fn files(documents: &Documents, member: usize, me: &Member) -> MemberFiles {
    MemberFiles {
        member: documents.names[member].clone(),
        incarnation: documents.incarnation(member),
        promise: Epoch(me.promise.into()),
        epoch: Epoch(me.epoch.into()),
        role: if me.leads { Role::Primary } else { Role::Standby },
        complete: me.complete,
        state_number: StateNumber(1),
        etcd_cluster_id: Some(STORE.to_owned()),
        system_identifier: Some(SYSTEM),
        confirmed: None,
        lease_id: Some(LEASE.0),
        restarted: me.restarted.into(),
        rejoin: marker(documents, me),
        acted_on: None,
        frozen: false,
    }
}

fn marker(documents: &Documents, me: &Member) -> Option<RejoinMarker> {
    let (by, phase, until) = match me.marker {
        Marker::None => return None,
        Marker::Rewinding => (RejoinBy::Rewind, RejoinPhase::Modifying, None),
        Marker::Copying => (RejoinBy::Copy, RejoinPhase::Copying, None),
        Marker::CatchingUp(until) => {
            (RejoinBy::Copy, RejoinPhase::CatchingUp, Some(Lsn(until.into())))
        }
    };
    let epoch = Epoch(me.epoch.into());
    let agreed = &documents.agreed.get(me.view).state;
    let record = agreed.epoch_record(epoch)?;
    Some(RejoinMarker {
        by,
        epoch,
        source: record.primary.clone(),
        source_timeline: record.timeline,
        attempt: 1,
        phase,
        until,
        fork: None,
        boot: None,
        started: WallTime(0),
    })
}

/// What the member was asked to do by the state that it read when it began its present step.
pub fn asked(documents: &Documents, member: usize, began: u16) -> Assignment {
    assignment(&documents.agreed.get(began).state, &documents.names[member])
}

pub fn lead(documents: &Documents, member: usize, began: u16) -> Option<Lead> {
    match asked(documents, member, began) {
        Assignment::Lead(lead) => Some(lead),
        Assignment::Wait
        | Assignment::Found
        | Assignment::Seal { .. }
        | Assignment::HandOver(_)
        | Assignment::Follow(_) => None,
    }
}

pub fn follow(documents: &Documents, member: usize, began: u16) -> Option<Follow> {
    match asked(documents, member, began) {
        Assignment::Follow(follow) => Some(follow),
        Assignment::Wait
        | Assignment::Found
        | Assignment::Seal { .. }
        | Assignment::HandOver(_)
        | Assignment::Lead(_) => None,
    }
}
