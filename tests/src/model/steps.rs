//! What a keeper's actions do, cut into the pieces between which a process can die: the product's workers, modelled.

use keeper::action::{Action, Proof};
use keeper::postgres::probe::Walsender;
use keeper::postgres::settings::StreamName;
use keeper::worker::prove::{counted, places_are_right};
use proto::Lsn;
use proto::assignment::Follow;

use super::Model;
use super::documents::Documents;
use super::keeper::{follow, lead, position, question, text, view};
use super::postgres::{self, name};
use super::state::{At, Broken, Known, Marker, Proven, Right, Rule, Sealed, Server, State, Step};

impl Model {
    /// Returns what the keeper of `member` would begin now.
    fn offered(&self, state: &State, member: usize) -> Option<Action> {
        let question = question(&self.documents, state, member);
        let decided = self.keepers.decide(&self.documents, self.mutant, question);
        let action = &decided.action;
        let free = match self.running(state, member) {
            None => true,
            Some(running) => running.yields_to(action),
        };
        (free && !matches!(action, Action::Hold(_))).then(|| action.clone())
    }

    /// Returns the action of the step that is under way.
    fn running(&self, state: &State, member: usize) -> Option<Action> {
        let me = &state.members[member];
        let began = || lead(&self.documents, member, me.began);
        match me.step {
            Step::None => None,
            Step::Cut { sealing, .. } => {
                Some(Action::Seal { sealing: proto::Epoch(sealing.into()) })
            }
            Step::Promote | Step::Promoted | Step::Opening { promoted: true } => {
                began().map(Action::Promote)
            }
            Step::Opening { promoted: false } => began().map(Action::Open),
            Step::First { cfg } | Step::Wait { cfg, .. } => Some(Action::Confirm {
                cfg: self.documents.cfgs.get(cfg.into()).clone(),
                proof: Proof::Priorities,
            }),
            Step::Fetch => {
                let follow = follow(&self.documents, member, me.began)?;
                Some(Action::Rewind { follow, reason: String::new() })
            }
            Step::Copy => {
                let follow = follow(&self.documents, member, me.began)?;
                Some(Action::Copy { follow, from: None, reason: String::new() })
            }
        }
    }

    /// Begins what `reconcile` wants.
    pub fn begin(&self, state: &mut State, member: usize) -> bool {
        let Some(action) = self.offered(state, member) else { return false };
        let me = &mut state.members[member];
        me.began = me.view;
        me.step = Step::None;
        match action {
            Action::Fence(_) => {
                me.seal = None;
                postgres::end(state, member);
            }
            Action::Seal { sealing } => {
                let early = self.is("position-before-cut").then_some(me.at);
                me.upstream = None;
                if !self.is("receiver-not-ended") && early.is_none() {
                    me.receiver = None;
                }
                me.step = Step::Cut { sealing: sealing.0 as u8, early };
            }
            Action::Scan => me.scanned = true,
            Action::StartStandby { follow, name } => {
                self.check_start(state, member);
                postgres::start(state, member, Server::Standby);
                self.take_up(state, member, &follow, name);
            }
            Action::StartSealed { .. } => {
                me.upstream = None;
                self.check_start(state, member);
                postgres::start(state, member, Server::Standby);
                state.members[member].started_sealed = true;
            }
            Action::Repoint { follow, name } => {
                me.receiver = None;
                self.take_up(state, member, &follow, name);
            }
            Action::MarkComplete { .. } => {
                me.complete = true;
                me.marker = Marker::None;
            }
            Action::Promote(_) => return self.prepare_promotion(state, member),
            Action::StartPrimary { restart, .. } => self.start_closed(state, member, restart as u8),
            Action::Open(_) => return self.open(state, member),
            Action::TakeRight { .. } => return self.take_right(state, member),
            Action::Confirm { cfg, proof } => {
                let number = self.documents.cfg(&cfg);
                return self.confirm(state, member, (number, proof));
            }
            Action::Rewind { follow, .. } => return self.mark(state, member, &follow),
            Action::Copy { .. } => {
                // What does not count is marked, so that nothing but a copy is started.
                if !me.complete {
                    me.marker = Marker::Copying;
                }
                me.step = Step::Copy;
            }
            Action::Hold(_)
            | Action::Found
            | Action::StartAlone(_)
            | Action::OpenBySigns(_)
            | Action::TakeSettings(_)
            | Action::KeepSlots { .. }
            | Action::PrepareHandOver { .. }
            | Action::HandOver(_)
            // The model's disks show only where their WAL ends.
            | Action::Compare { .. }
            | Action::DropUnreplayed(_) => return false,
        }
        true
    }

    fn start_closed(&self, state: &mut State, member: usize, restart: u8) {
        let me = &mut state.members[member];
        me.restarted = me.restarted.max(restart);
        me.upstream = None;
        self.check_start(state, member);
        postgres::start(state, member, Server::Primary);
        if self.is("restart-opens-at-once") {
            self.let_clients_in(state, member);
        }
    }

    /// Goes on with what was begun.
    pub fn go_on(&self, state: &mut State, member: usize) -> bool {
        let me = state.members[member];
        match me.step {
            Step::None => false,
            Step::Cut { sealing, early } => self.seal(state, member, (sealing, early)),
            Step::Promote => self.promote(state, member),
            Step::Promoted => {
                let taken = self.take_right(state, member);
                let step = if taken { Step::Opening { promoted: true } } else { Step::None };
                state.members[member].step = step;
                true
            }
            Step::Opening { promoted } => self.open_when_safe(state, member, promoted),
            Step::First { cfg } => {
                let shown = self.walsenders(state, member);
                let right = places_are_right(self.documents.cfgs.get(cfg.into()), &shown);
                if !right && !self.is("walsenders-not-proven") {
                    return false;
                }
                let me = &mut state.members[member];
                me.names = Rule::Any(cfg);
                me.known = Known::Proven(cfg);
                me.step = Step::Wait { cfg, lsn: me.at.lsn };
                true
            }
            Step::Wait { cfg, lsn } => self.take_evidence(state, member, (cfg, lsn)),
            Step::Fetch => self.fetch(state, member),
            Step::Copy => self.replace(state, member),
        }
    }

    /// Waits no longer for all walsenders to show their places.
    pub fn give_up(&self, state: &mut State, member: usize) -> bool {
        let me = &mut state.members[member];
        let Step::First { cfg } = me.step else { return false };
        me.names = Rule::Any(cfg);
        me.step = Step::None;
        true
    }

    fn seal(&self, state: &mut State, member: usize, (sealing, early): (u8, Option<At>)) -> bool {
        let me = &mut state.members[member];
        if !self.is("promise-not-durable") {
            me.promise = me.promise.max(sealing);
        }
        if early.is_some() {
            me.receiver = None;
        }
        let at = early.unwrap_or(me.at);
        let clean = me.server == Server::Standby || !me.leads;
        me.step = Step::None;
        me.scanned |= me.server == Server::Down;
        let view = me.view;
        let agreed = &self.documents.agreed.get(view).state;
        if position(agreed, at, state.timeline(at)).is_some() {
            state.members[member].seal = Some(Sealed { sealing, at, clean });
            state.given[member] = state.given[member].max(sealing);
        }
        true
    }

    fn take_up(&self, state: &mut State, member: usize, follow: &Follow, stream: StreamName) {
        let me = &mut state.members[member];
        me.promise = me.promise.max(follow.epoch.0 as u8);
        me.epoch = follow.epoch.0 as u8;
        me.leads = false;
        me.upstream = Some(match stream {
            StreamName::Voter { round } => name(follow.epoch.0, Some(round)),
            StreamName::Joining => name(follow.epoch.0, None),
        });
        me.names = match self.is("names-empty-on-standbys") {
            true => Rule::Empty,
            false => Rule::Nobody,
        };
    }

    fn prepare_promotion(&self, state: &mut State, member: usize) -> bool {
        let me = &mut state.members[member];
        let Some(lead) = lead(&self.documents, member, me.began) else { return false };
        let Some(cfg) = lead.own_cfg() else { return false };
        me.promise = me.promise.max(lead.epoch.0 as u8);
        me.epoch = lead.epoch.0 as u8;
        me.leads = true;
        me.open = false;
        me.upstream = None;
        me.names = Rule::Any(self.documents.cfg(cfg));
        me.step = Step::Promote;
        true
    }

    fn promote(&self, state: &mut State, member: usize) -> bool {
        let me = state.members[member];
        let Some(lead) = lead(&self.documents, member, me.began) else { return false };
        let Some(cfg) = lead.own_cfg() else { return false };
        let number = self.documents.cfg(cfg);
        let Some(branch) = state.fork(lead.timeline.0 as u8, lead.epoch.0 as u8, me.at) else {
            return false;
        };
        let me = &mut state.members[member];
        // The record with which a timeline begins.
        me.at = At { branch, lsn: me.at.lsn + 1 };
        me.server = Server::Primary;
        me.receiver = None;
        me.known = Known::Proven(number);
        me.names = Rule::Any(number);
        me.step = Step::Promoted;
        true
    }

    /// Takes the right, in a transaction that looks at the state.
    fn take_right(&self, state: &mut State, member: usize) -> bool {
        let agreed = self.documents.agreed.get(state.agreed);
        let me = &mut state.members[member];
        let ordered = agreed.state.restart.as_ref().filter(|r| r.epoch.0 == u64::from(me.epoch));
        let named = agreed.primary == member
            && agreed.epoch == me.epoch
            && agreed.sealing.is_none()
            && ordered.map_or(0, |r| r.number) == u64::from(me.restarted);
        if named {
            me.right = true;
            state.right = Some(Right { member: member as u8, epoch: me.epoch });
        }
        named
    }

    fn open(&self, state: &mut State, member: usize) -> bool {
        if !self.take_right(state, member) {
            return false;
        }
        let me = &mut state.members[member];
        match me.open {
            true => me.opened = Some(me.restarted),
            false => me.step = Step::Opening { promoted: false },
        }
        true
    }

    fn open_when_safe(&self, state: &mut State, member: usize, promoted: bool) -> bool {
        let me = state.members[member];
        let Some(lead) = lead(&self.documents, member, me.began) else { return false };
        let Some(cfg) = lead.own_cfg() else { return false };
        let number = self.documents.cfg(cfg);
        let at_once = promoted && lead.open_at_once || self.is("open-without-voters");
        if me.known == Known::Impossible {
            // A canary commit has to be seen to wait.
            if !me.waits {
                return false;
            }
            let me = &mut state.members[member];
            me.names = Rule::Any(number);
            me.known = Known::Proven(number);
            return true;
        }
        if !at_once && self.holders(state, member, (number, me.at.lsn)).count_ones() < cfg.k as u32
        {
            return false;
        }
        self.let_clients_in(state, member);
        let me = &mut state.members[member];
        me.opened = Some(me.restarted);
        me.step = Step::None;
        true
    }

    /// From here on its clients read what it recovered.
    fn let_clients_in(&self, state: &mut State, member: usize) {
        let at = state.members[member].at;
        let agreed = self.documents.agreed.get(state.agreed);
        let named = agreed.primaries.get(&state.members[member].epoch) == Some(&member);
        if !named {
            state.breaks(Broken::SelfMade);
        }
        for number in 0..state.commits.len() {
            let Some(mut commit) = state.commits[number] else { continue };
            if state.covers(at, commit.at) {
                commit.read = true;
                state.commits[number] = Some(commit);
            }
        }
        state.members[member].open = true;
    }

    fn confirm(&self, state: &mut State, member: usize, (cfg, proof): (u8, Proof)) -> bool {
        let me = &mut state.members[member];
        match proof {
            Proof::Given => {}
            Proof::Priorities => {
                me.known = Known::Unproven;
                me.names = Rule::First(cfg);
                me.step = Step::First { cfg };
                return true;
            }
            Proof::Canary => {
                if !me.waits {
                    return false;
                }
                me.names = Rule::Any(cfg);
                me.known = Known::Proven(cfg);
            }
            // No Cfg without voters is within reach.
            Proof::FromNone | Proof::Alone | Proof::Closed => return false,
        }
        me.step = Step::Wait { cfg, lsn: me.at.lsn };
        true
    }

    fn take_evidence(&self, state: &mut State, member: usize, (cfg, lsn): (u8, u8)) -> bool {
        let k = self.documents.cfgs.get(cfg.into()).k;
        let voters = match self.is("confirm-without-evidence") {
            true => self.documents.bits(&self.documents.cfgs.get(cfg.into()).voters),
            false => self.holders(state, member, (cfg, lsn)),
        };
        if (voters.count_ones() as usize) < k {
            return false;
        }
        let me = &mut state.members[member];
        me.confirmed = Some(Proven { cfg, lsn, voters });
        me.step = Step::None;
        true
    }

    /// Returns the voters that hold everything before `lsn`, by the product's own rule.
    fn holders(&self, state: &State, member: usize, (cfg, lsn): (u8, u8)) -> u8 {
        let me = &state.members[member];
        let cfg = self.documents.cfgs.get(cfg.into());
        let mut senders = self.walsenders(state, member);
        senders.retain(|s| s.flush_lsn.is_some_and(|at| at >= Lsn(lsn.into())));
        if senders.len() < cfg.k {
            return 0;
        }
        let mut view = view(&self.documents, me.view);
        for (i, number) in state.reports.iter().enumerate() {
            let Some(number) = number else { continue };
            let report = (**self.documents.reports.get(*number)).clone();
            view.reports.insert(self.documents.names[i].clone(), report);
        }
        let own = Lsn(me.at.lsn.into());
        self.documents.bits(&counted(&view, cfg, &senders, Lsn(lsn.into()), own))
    }

    /// Returns `pg_stat_replication`.
    fn walsenders(&self, state: &State, member: usize) -> Vec<Walsender> {
        let documents: &Documents = &self.documents;
        let shown = postgres::priorities(documents, &state.members[member]).into_iter();
        shown
            .map(|(i, sender, sync_priority)| Walsender {
                pid: i as i32,
                name: text(&documents.names[i], sender.name),
                state: "streaming".to_owned(),
                flush_lsn: Some(Lsn(sender.flush.into())),
                replay_lsn: None,
                sync_priority,
                sync_state: String::new(),
            })
            .collect()
    }

    /// Marks the member incomplete before its data is touched.
    fn mark(&self, state: &mut State, member: usize, follow: &Follow) -> bool {
        let me = &mut state.members[member];
        me.promise = me.promise.max(follow.epoch.0 as u8);
        me.epoch = follow.epoch.0 as u8;
        me.leads = false;
        me.complete &= self.is("rewind-without-mark");
        me.marker = Marker::Rewinding;
        me.step = Step::Fetch;
        self.check_destruction(state, member);
        true
    }

    /// Returns whom a member rejoins, and where that one's WAL ends, if it is a primary of the right timeline.
    fn source(&self, state: &State, member: usize) -> Option<(Follow, At)> {
        let follow = follow(&self.documents, member, state.members[member].began)?;
        let source = state.members[self.documents.index_of(&follow.primary)];
        let serves = source.server == Server::Primary
            && u32::from(state.timeline(source.at)) == follow.timeline.0;
        serves.then_some((follow, source.at))
    }

    /// The finished copy takes the place of the data, and counts from then on.
    fn replace(&self, state: &mut State, member: usize) -> bool {
        let Some((follow, at)) = self.source(state, member) else { return false };
        let epoch = follow.epoch.0 as u8;
        let me = &mut state.members[member];
        if me.promise > epoch {
            return false;
        }
        (me.promise, me.epoch, me.leads) = (epoch, me.epoch.max(epoch), false);
        (me.at, me.complete, me.marker) = (at, true, Marker::None);
        (me.seal, me.scanned, me.step) = (None, false, Step::None);
        true
    }

    fn fetch(&self, state: &mut State, member: usize) -> bool {
        let Some((_, at)) = self.source(state, member) else { return false };
        let me = &mut state.members[member];
        me.at = at;
        me.marker = Marker::CatchingUp(at.lsn);
        me.complete |= self.is("complete-after-rewind");
        me.scanned = false;
        me.step = Step::None;
        true
    }

    /// Nothing is started on data that may be mixed.
    fn check_start(&self, state: &mut State, member: usize) {
        if postgres::is_mixed(&state.members[member]) {
            state.breaks(Broken::Destroyed);
        }
    }

    /// I14: data goes only where nobody needs it: the member stands in no Cfg, or the primary alone seals each of them.
    fn check_destruction(&self, state: &mut State, member: usize) {
        let agreed = self.documents.agreed.get(state.members[member].began);
        let stands = |voters: u8, leader: usize| leader == member || voters >> member & 1 == 1;
        let alone = |c: &super::documents::SmallCfg| {
            c.leader == agreed.primary
                || c.voters >> agreed.primary & 1 == 1 && c.voters.count_ones() as usize == c.k
        };
        let nowhere = agreed.cfgs.iter().all(|c| !stands(c.voters, c.leader));
        if !nowhere && !agreed.cfgs.iter().all(alone) {
            state.breaks(Broken::Destroyed);
        }
    }
}
