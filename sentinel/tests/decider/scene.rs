//! A cluster as the leader sees it, with keepers that say what they are told to. Every commit is
//! checked by the invariants, as the shell does it: a test that gets an unsafe plan fails there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::history::HistoryRecord;
use proto::proxy::{Clients, ProxyReport};
use proto::report::{Confirmed, DataDirectory, Handover, Opened, Readiness, Seal, Server, Stream};
use proto::request::{Request, RequestId, RequestKind, RequestOutcome, Terms, Wanted};
use proto::state::SwitchoverStep;
use proto::{
    Assignment, ClusterSpec, ClusterState, Epoch, Incarnation, Lsn, MemberName, MemberReport,
    Moment, Phase, PrimaryKey, SystemIdentifier, Timeline, WalPosition, WallTime,
};
use sentinel::decide::{conditions, decide};
use sentinel::invariant;
use sentinel::observe::{Observations, Stored, Timers};
use sentinel::plan::{Plan, Verdict, WaitingOn};

pub const SYSTEM: SystemIdentifier = SystemIdentifier(7_000_000_000_000_000_042);
/// More commits than any change needs in a row: a decider that spins is a bug.
const MOST_STEPS: usize = 12;

pub fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

pub fn names(list: &[&str]) -> BTreeSet<MemberName> {
    list.iter().map(|n| name(n)).collect()
}

pub fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub struct Scene {
    pub spec: ClusterSpec,
    pub state: Option<ClusterState>,
    pub seen: Observations,
    pub history: BTreeMap<(Epoch, u64), HistoryRecord>,
    /// The reasons of all commits, oldest first.
    pub commits: Vec<String>,
    timers: Timers,
    now: Moment,
}

impl Scene {
    /// Members that report empty data directories, and no state.
    pub fn empty(members: &[&str]) -> Self {
        let seen = Observations {
            leader: "s1".into(),
            etcd_cluster_id: "e7cd".into(),
            ..Observations::default()
        };
        let mut scene = Self {
            spec: ClusterSpec::default(),
            state: None,
            seen,
            history: BTreeMap::new(),
            commits: Vec::new(),
            timers: Timers::default(),
            now: Moment::since_boot(Duration::from_secs(1000)),
        };
        for member in members {
            scene.returns(member);
        }
        scene
    }

    /// A cluster of epoch 1 in which all is well: `primary` serves, `standbys` vote, one must
    /// acknowledge.
    pub fn serving(primary: &str, standbys: &[&str]) -> Self {
        Self::serving_with(ClusterSpec::default(), primary, standbys)
    }

    pub fn serving_with(spec: ClusterSpec, primary: &str, standbys: &[&str]) -> Self {
        let mut scene = Self::empty(standbys);
        scene.spec = spec;
        scene.spec.founder = Some(name(primary));
        scene.returns(primary);
        scene.settle();
        scene.founds(primary);
        scene.settle();
        scene.opens(primary);
        scene.settle();
        for standby in standbys {
            scene.streams(standby);
        }
        scene.pass(Duration::from_secs(1));
        scene.settle();
        scene.confirms("0/3000000");
        scene.settle();
        scene.spec.founder = None;
        scene
    }

    pub fn state(&self) -> &ClusterState {
        self.state.as_ref().expect("the cluster was founded")
    }

    pub fn primary(&self) -> MemberName {
        self.state().primary.clone().expect("there is a primary")
    }

    pub fn report(&mut self, member: &str) -> &mut MemberReport {
        self.seen.members.get_mut(&name(member)).expect("the member reports")
    }

    pub fn now(&self) -> Moment {
        self.now
    }

    pub fn wall(&self) -> WallTime {
        WallTime(1_790_000_000_000 + self.now.boot_time().as_millis() as i64)
    }

    // What keepers say.

    /// The keeper starts with member files of its own and an empty data directory.
    pub fn returns(&mut self, member: &str) {
        self.seen.members.insert(name(member), blank(member));
    }

    pub fn founds(&mut self, member: &str) {
        let report = self.report(member);
        report.data = DataDirectory::Present;
        report.system_identifier = Some(SYSTEM);
        report.complete = true;
        report.promise = Epoch(1);
        report.server = Server::Stopped;
    }

    /// The keeper takes the right, and its PostgreSQL serves as the state asks.
    pub fn opens(&mut self, member: &str) {
        let state = self.state().clone();
        let restart =
            state.restart.as_ref().filter(|r| r.epoch == state.epoch).map_or(0, |r| r.number);
        self.holds_right(member);
        let report = self.report(member);
        report.server = Server::Primary { timeline: state.timeline };
        report.stream = Stream::None;
        report.promise = state.epoch;
        report.opened = Some(Opened {
            epoch: state.epoch,
            timeline: state.timeline,
            start_lsn: report.seal.map_or(Lsn(0x100_0000), |s| s.position.lsn),
            restart,
        });
    }

    pub fn holds_right(&mut self, member: &str) {
        let incarnation = self.report(member).incarnation.clone();
        let key = PrimaryKey { member: name(member), epoch: self.state().epoch, incarnation };
        self.seen.primary_key = Stored::Known(key);
    }

    /// A standby, complete and connected under its voter's name.
    pub fn streams(&mut self, member: &str) {
        let (epoch, timeline) = (self.state().epoch, self.state().timeline);
        let report = self.report(member);
        report.data = DataDirectory::Present;
        report.system_identifier = Some(SYSTEM);
        report.complete = true;
        report.promise = epoch;
        report.server = Server::Standby { timeline };
        report.stream = Stream::Live { epoch, timeline, voter: true };
    }

    pub fn silent(&mut self, member: &str) {
        let epoch = self.state().epoch;
        self.report(member).stream = Stream::Silent { epoch };
    }

    /// The primary proves its newest Cfg, with all of its voters that stream.
    pub fn confirms(&mut self, lsn: &str) {
        let cfg = self.state().newest_cfg().unwrap().clone();
        let live = |m: &&MemberName| {
            let report = self.seen.members.get(*m);
            report.is_some_and(|r| matches!(r.stream, Stream::Live { voter: true, .. }))
        };
        let voters = cfg.voters.iter().filter(live).cloned().collect();
        let primary = self.primary();
        let confirmed = Confirmed { cfg: cfg.id, lsn: lsn.parse().unwrap(), voters };
        self.report(primary.as_str()).confirmed = Some(confirmed);
    }

    /// PostgreSQL dies and its keeper says so.
    pub fn dies(&mut self, member: &str) {
        let noticed = self.wall();
        let report = self.report(member);
        report.server = Server::Dead { noticed, gone: true };
        report.opened = None;
        report.stream = Stream::None;
    }

    /// The lease of the keeper lapses, and with it its keys.
    pub fn vanishes(&mut self, member: &str) {
        self.seen.members.remove(&name(member));
        if matches!(&self.seen.primary_key, Stored::Known(key) if key.member == name(member)) {
            self.seen.primary_key = Stored::Absent;
        }
    }

    /// The member seals for what the state asks, with its last WAL of the epoch that it served in.
    pub fn seals(&mut self, member: &str, lsn: &str) {
        let epoch = self.state().epoch;
        self.seals_with_wal_of(member, lsn, epoch);
    }

    pub fn seals_with_wal_of(&mut self, member: &str, lsn: &str, epoch: Epoch) {
        let sealing = self.state().sealing.expect("a seal is asked for");
        let timeline =
            self.state().epoch_record(epoch).map_or(Timeline(1), |record| record.timeline);
        let lsn: Lsn = lsn.parse().unwrap();
        let report = self.report(member);
        report.promise = sealing;
        if report.opened.take().is_some() {
            report.server = Server::Stopped;
        }
        let clean = matches!(report.server, Server::Standby { .. });
        report.stream = Stream::None;
        let position = WalPosition { epoch, lsn, timeline };
        report.seal = Some(Seal { sealing, position, replayed: lsn, clean });
    }

    // What is asked for.

    /// An operator asks for a switchover, for 30 s; the leader's transaction takes the request away.
    pub fn asks_for_switchover(&mut self, id: u64, to: Option<&str>) -> RequestId {
        let request = Request {
            id: RequestId::from_random(id),
            by: "ann@north".into(),
            asked: self.wall(),
            valid_for: Duration::from_secs(30),
            wanted: Wanted::Switchover(Terms::to(to.map(name))),
        };
        self.seen.requests.insert(RequestKind::Switchover, request.clone());
        request.id
    }

    pub fn outcome(&self, id: &RequestId) -> RequestOutcome {
        self.state().request(id).expect("it was answered").outcome.clone()
    }

    /// The primary's keeper has its checkpoint written; these standbys have that many bytes left to replay.
    pub fn is_ready_to_hand_over(&mut self, left: &[(&str, u64)]) {
        let request = self.state().switchover().expect("one is under way").request.clone();
        let left = left.iter().map(|(m, bytes)| (name(m), *bytes)).collect();
        let primary = self.primary();
        self.report(primary.as_str()).handover =
            Some(Handover { request, readiness: Readiness::Ready { left } });
    }

    /// A live proxy says whether it can hold clients, and for which switchover it does.
    pub fn proxy(&mut self, id: &str, clients: Clients, held: Option<&RequestId>) {
        let epoch = self.state().epoch;
        let (held, refusing) = (held.cloned(), BTreeMap::new());
        let report = ProxyReport { id: id.into(), epoch, clients, held, refusing };
        self.seen.proxies.insert(id.into(), report);
    }

    /// The primary's PostgreSQL is shut down with its WAL ending at `lsn`, and its keeper has sealed.
    pub fn hands_over(&mut self, lsn: &str) {
        let (epoch, timeline, primary) =
            (self.state().epoch, self.state().timeline, self.primary());
        let position = WalPosition { epoch, lsn: lsn.parse().unwrap(), timeline };
        self.dies(primary.as_str());
        let report = self.report(primary.as_str());
        report.promise = epoch.next();
        let replayed = position.lsn;
        report.seal = Some(Seal { sealing: epoch.next(), position, replayed, clean: true });
    }

    // What the leader does.

    pub fn pass(&mut self, time: Duration) {
        // In steps no longer than the shell's tick, as snapshots too far apart prove nothing.
        self.mark();
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(millis(1000));
            self.now = self.now + step;
            left -= step;
            self.mark();
        }
    }

    /// Time in which the leader could not read.
    pub fn outage(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn mark(&mut self) {
        let holding = self.state.as_ref().map(|s| conditions(&self.spec, s, &self.seen));
        self.timers.update(holding.unwrap_or_default(), self.now);
        self.seen.durability = self.spec.durability;
        self.seen.held = self.timers.clone();
    }

    /// Decides once and commits nothing.
    pub fn decide(&mut self) -> Plan {
        self.mark();
        self.seen.history =
            self.state.as_ref().and_then(|s| self.history.get(&current(s)).cloned());
        decide(&self.spec, self.state.as_ref(), &self.seen, self.now, self.wall())
    }

    /// Decides and commits until something is waited for. Returns that last plan.
    pub fn settle(&mut self) -> Plan {
        for _ in 0..MOST_STEPS {
            let plan = self.decide();
            match &plan.verdict {
                Verdict::Wait(_) => return plan,
                Verdict::Change { next, history, why } => {
                    let broken = invariant::check(self.state.as_ref(), next, &self.seen);
                    assert_eq!(broken, [], "unsafe plan: {why}");
                    self.commits.push(why.clone());
                    self.state = Some((**next).clone());
                    self.seen.requests.retain(|_, r| next.request(&r.id).is_none());
                    self.keep(history);
                }
                Verdict::Record { history, .. } => self.keep(history),
            }
        }
        panic!("the decider spins: {:?}", self.commits);
    }

    fn keep(&mut self, history: &[sentinel::plan::HistoryWrite]) {
        for write in history {
            self.history.insert((write.epoch, write.restart), write.record.clone());
        }
    }

    /// Settles and returns what is waited for.
    pub fn waits(&mut self) -> WaitingOn {
        match self.settle().verdict {
            Verdict::Wait(waiting) => waiting,
            other => unreachable!("settle ends with a wait, not {other:?}"),
        }
    }

    /// A new leader has no memory of how long anything has held.
    pub fn leader_changes(&mut self) {
        self.timers = Timers::default();
    }

    pub fn sealing(&self) -> Option<Epoch> {
        self.state().sealing
    }

    pub fn voters(&self) -> BTreeSet<MemberName> {
        self.state().newest_cfg().unwrap().voters.clone()
    }

    pub fn is_asked_to_seal(&self, member: &str) -> bool {
        matches!(
            proto::assignment::assignment(self.state(), &name(member)),
            Assignment::Seal { .. }
        )
    }
}

/// The key of the record of the present change, told without the product's code.
fn current(state: &ClusterState) -> (Epoch, u64) {
    if let Phase::Switchover(s) = &state.phase
        && !matches!(s.step, SwitchoverStep::Checkpoint | SwitchoverStep::Hold { .. })
    {
        return (Epoch(state.epoch.0 + 1), 0);
    }
    let order = state.restart.as_ref().filter(|r| r.epoch == state.epoch);
    match (state.sealing, order) {
        (Some(sealing), _) => (sealing, 0),
        (None, Some(order)) if (state.epoch, order.number) != (Epoch(1), 1) => {
            (state.epoch, order.number)
        }
        (None, _) => (state.epoch, 0),
    }
}

pub fn blank(member: &str) -> MemberReport {
    MemberReport {
        member: name(member),
        incarnation: Incarnation(format!("{member}-1")),
        understands_format: 1,
        pgdeputy_version: "0.1.0".into(),
        postgres_version: 150_018,
        postgres_address: "127.0.0.1:5432".parse().unwrap(),
        http_address: "127.0.0.1:8008".parse().unwrap(),
        zone: None,
        promise: Epoch(0),
        data: DataDirectory::Empty,
        system_identifier: None,
        complete: false,
        server: Server::Stopped,
        opened: None,
        confirmed: None,
        stream: Stream::None,
        seal: None,
        handover: None,
        leaving: false,
        rejoin: None,
        unresponsive: None,
        ended: None,
        never_received: false,
        silence: None,
        standstill: None,
        hears: Default::default(),
        frozen: None,
        problems: BTreeSet::new(),
    }
}
