//! The product's deciders under a model checker: every order of everything that can happen, within bounds.
//!
//! There is no clock. Each process goes on when it likes, and each timer has run out or has not. See docs/model.md.

mod documents;
mod keeper;
mod leader;
mod mistakes;
mod postgres;
mod property;
pub mod run;
mod state;
mod steps;

use stateright::Property;

use documents::{BEGIN, Documents};
use keeper::Keepers;
use leader::{Leader, Reach, Snapshot};
use state::{
    At, BRANCHES, Branch, Broken, Known, Left, MEMBERS, Marker, Member, Pending, Proven, Right,
    Rule, Sender, Server, State, Step,
};

/// How much is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    reach: Reach,
    left: Left,
    /// Whether a report may be published later than what it says came about.
    late_reports: bool,
}

impl Bounds {
    /// Reads `failovers,changes,restarts,commits,crashes,lapses,late,silences`, and perhaps `,late-reports`.
    pub fn parse(text: &str) -> Option<Self> {
        let (numbers, late_reports) = match text.strip_suffix(",late-reports") {
            Some(numbers) => (numbers, true),
            None => (text, false),
        };
        let numbers: Vec<u8> = numbers.split(',').map_while(|n| n.parse().ok()).collect();
        let [failovers, changes, restarts, commits, crashes, lapses, late, silences] = numbers[..]
        else {
            return None;
        };
        let reach = Reach {
            failovers: failovers.into(),
            changes: changes.into(),
            restarts: restarts.into(),
        };
        Some(Self { reach, left: Left { commits, crashes, lapses, late, silences }, late_reports })
    }
}

/// One check.
pub struct Model {
    documents: Documents,
    leader: Leader,
    keepers: Keepers,
    bounds: Bounds,
    mutant: Option<&'static str>,
}

/// Something that happens. Members are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A leader decides, and its write is done at once.
    Agree(u16),
    /// A leader decides, and stands still before it writes.
    Decide(u16),
    /// Its write arrives.
    WriteLate,
    /// A keeper reads the agreed state.
    Read(u8),
    /// A keeper begins what `reconcile` wants.
    Begin(u8),
    /// It does the next piece of it.
    GoOn(u8),
    GiveUp(u8),
    /// Its report reaches etcd.
    Report(u8),
    ReportLapses(u8),
    RightLapses,
    /// All standbys say that they hear nothing of the primary.
    FallSilent,
    Connect(u8),
    Receive(u8),
    Reload(u8, u8),
    Checkpointer(u8),
    Write(u8),
    Acknowledge(u8),
    PostgresDies(u8),
    KeeperDies(u8),
    MachineDies(u8),
}

impl Model {
    pub fn new(bounds: Bounds, mutant: Option<&'static str>) -> Self {
        Self {
            documents: Documents::default(),
            leader: Leader::default(),
            keepers: Keepers::default(),
            bounds,
            mutant,
        }
    }

    /// All stream, and one Cfg is recorded and proven.
    fn first(&self) -> State {
        let agreed = self.documents.agree(self.documents.first());
        let cfg = self.documents.agreed.get(agreed).cfgs[0].number;
        let at = At { branch: 0, lsn: BEGIN };
        let name = postgres::name(1, Some(0));
        let standby = Member {
            promise: 1,
            epoch: 1,
            leads: false,
            complete: true,
            restarted: 0,
            marker: Marker::None,
            at,
            upstream: Some(name),
            names: Rule::Nobody,
            server: Server::Standby,
            open: false,
            waits: true,
            receiver: Some(name),
            senders: [None; MEMBERS],
            view: agreed,
            began: agreed,
            step: Step::None,
            exited: false,
            deaths: 0,
            seal: None,
            scanned: false,
            streamed: Some(1),
            started_sealed: false,
            opened: None,
            confirmed: None,
            known: Known::Impossible,
            right: false,
        };
        let sender = Some(Sender { name, rule: Rule::Any(cfg), flush: BEGIN });
        let primary = Member {
            leads: true,
            upstream: None,
            names: Rule::Any(cfg),
            server: Server::Primary,
            open: true,
            receiver: None,
            senders: [None, sender, sender],
            streamed: None,
            opened: Some(0),
            confirmed: Some(Proven { cfg, lsn: BEGIN, voters: 0b110 }),
            known: Known::Proven(cfg),
            right: true,
            ..standby
        };
        let mut branches = [Branch::default(); BRANCHES];
        branches[0] = Branch { timeline: 1, epoch: 1, parent: 0, fork: 0 };
        let mut state = State {
            agreed,
            right: Some(Right { member: 0, epoch: 1 }),
            reports: [None; MEMBERS],
            pending: None,
            members: [primary, standby, standby],
            branches,
            commits: [None; state::COMMITS],
            left: self.bounds.left,
            silent: false,
            given: [0; MEMBERS],
            broken: None,
        };
        (0..MEMBERS).for_each(|member| self.report(&mut state, member));
        state
    }

    fn report(&self, state: &mut State, member: usize) {
        let question = keeper::question(&self.documents, state, member);
        let decided = self.keepers.decide(&self.documents, self.mutant, question);
        state.reports[member] = Some(decided.report);
    }

    fn choices(&self, state: &State) -> std::sync::Arc<leader::Choices> {
        let snapshot = Snapshot {
            agreed: state.agreed,
            right: state.right,
            reports: state.reports,
            silent: state.silent,
        };
        self.leader.choices(&self.documents, (self.bounds.reach, self.mutant), snapshot)
    }

    fn apply(&self, state: &mut State, event: Event) -> bool {
        let documents = &self.documents;
        match event {
            Event::Agree(next) => {
                if self.choices(state).refused.is_some() {
                    state.breaks(Broken::Refused);
                }
                let same = next == state.agreed;
                state.agreed = next;
                !same
            }
            Event::Decide(next) => {
                state.pending = Some(Pending { decided_on: state.agreed, next });
                state.left.late -= 1;
                true
            }
            Event::WriteLate => self.write_late(state),
            Event::Read(m) => {
                let me = &mut state.members[m as usize];
                let news = me.view != state.agreed;
                me.view = state.agreed;
                news
            }
            Event::Begin(m) => self.begin(state, m.into()),
            Event::GoOn(m) => self.go_on(state, m.into()),
            Event::GiveUp(m) => self.give_up(state, m.into()),
            Event::Report(m) => {
                let before = state.reports[m as usize];
                self.report(state, m.into());
                state.reports[m as usize] != before
            }
            Event::ReportLapses(m) => {
                state.left.lapses -= 1;
                state.reports[m as usize].take().is_some()
            }
            Event::RightLapses => {
                let held = state.right.take();
                if let Some(right) = held {
                    state.members[right.member as usize].right = false;
                }
                held.is_some()
            }
            Event::FallSilent => {
                state.left.silences -= 1;
                state.silent = true;
                true
            }
            Event::Connect(m) => postgres::connect(documents, state, m.into()),
            Event::Receive(m) => postgres::receive(documents, state, m.into()),
            Event::Reload(p, m) => postgres::reload(state, p.into(), m.into()),
            Event::Checkpointer(m) => postgres::checkpointer(state, m.into()),
            Event::Write(m) => postgres::write(state, m.into()),
            Event::Acknowledge(c) => postgres::acknowledge(documents, state, c.into()),
            Event::PostgresDies(m) | Event::KeeperDies(m) | Event::MachineDies(m) => {
                self.dies(state, m.into(), event)
            }
        }
    }

    /// I7: the write is refused where the state is not the one that was decided on.
    fn write_late(&self, state: &mut State) -> bool {
        let Some(pending) = state.pending.take() else { return false };
        let guarded = !self.is("stale-sentinel-without-guard");
        let stale = pending.decided_on != state.agreed;
        if stale && guarded {
            return false;
        }
        if stale {
            state.breaks(Broken::Guard);
        }
        state.agreed = pending.next;
        true
    }

    fn dies(&self, state: &mut State, member: usize, event: Event) -> bool {
        state.left.crashes -= 1;
        let ran = state.members[member].server != Server::Down;
        let keeper = !matches!(event, Event::PostgresDies(_));
        let server = !matches!(event, Event::KeeperDies(_)) && ran;
        if server {
            postgres::end(state, member);
        }
        if keeper {
            postgres::forget(state, member);
        }
        server || keeper
    }

    /// Reports are published with what they tell, and a write that cannot succeed is forgotten.
    fn settle(&self, before: &State, state: &mut State) {
        state.silent &= state.agreed == before.agreed;
        let hopeless = state.pending.is_some_and(|p| p.decided_on != state.agreed);
        if hopeless && !self.is("stale-sentinel-without-guard") {
            state.pending = None;
        }
        // What a finished step was begun with tells nothing any more.
        for member in state.members.iter_mut().filter(|m| m.step == Step::None) {
            member.began = 0;
        }
        if self.bounds.late_reports {
            return;
        }
        for member in 0..MEMBERS {
            let told = |state: &State| {
                (state.reports[member], keeper::question(&self.documents, state, member))
            };
            if state.reports[member].is_some() && told(before) != told(state) {
                self.report(state, member);
            }
        }
    }
}

impl stateright::Model for Model {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        vec![self.first()]
    }

    fn actions(&self, state: &State, events: &mut Vec<Event>) {
        if state.broken.is_some() {
            return;
        }
        let choices = self.choices(state);
        events.extend(choices.next.iter().map(|next| Event::Agree(*next)));
        if choices.refused.is_some() {
            events.push(Event::Agree(state.agreed));
        }
        if state.pending.is_none() && state.left.late > 0 {
            events.extend(choices.next.iter().map(|next| Event::Decide(*next)));
        }
        events.extend([Event::WriteLate, Event::RightLapses]);
        if state.left.silences > 0 && !state.silent {
            events.push(Event::FallSilent);
        }
        for m in 0..MEMBERS as u8 {
            events.extend([Event::Read(m), Event::Begin(m), Event::GoOn(m), Event::GiveUp(m)]);
            events.extend([Event::Connect(m), Event::Receive(m), Event::Checkpointer(m)]);
            events.extend([Event::Write(m), Event::Report(m)]);
            events.extend((0..MEMBERS as u8).map(|other| Event::Reload(m, other)));
            if state.left.crashes > 0 {
                events.extend([Event::PostgresDies(m), Event::KeeperDies(m)]);
                events.push(Event::MachineDies(m));
            }
            if state.left.lapses > 0 {
                events.push(Event::ReportLapses(m));
            }
        }
        events.extend((0..state::COMMITS as u8).map(Event::Acknowledge));
    }

    fn next_state(&self, before: &State, event: Event) -> Option<State> {
        let mut state = *before;
        if !self.apply(&mut state, event) && state.broken == before.broken {
            return None;
        }
        self.settle(before, &mut state);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        property::all()
    }
}
