//! The modelled PostgreSQL by itself, moved step by step as a test says: what it shows is compared with what a real one
//! shows after the same steps.
//!
//! The one rule: no keeper, no etcd and no fault of its own. Between two steps everything comes to rest.

use std::time::Duration;

use keeper::member_files::{MemberFiles, Role};
use keeper::postgres::settings::{Access, Settings, StreamName, Upstream};
use proto::{Epoch, Incarnation, Lsn, Timeline};
use tokio::sync::oneshot;

use super::disk::Data;
use super::executor::{Micros, ProcId, Sim};
use super::postgres::{Pg, Phase, SqlError, shown};
use super::profiles::Profile;
use super::run::Plan;
use super::wal::At;

/// Longer than anything takes that nobody holds up, and short beside the time-outs of walsenders.
const REST: Micros = 1_200_000;
const STARTS_WITHIN: Micros = 3_000_000;
/// As PostgreSQL has it, so that nobody who is stopped is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const EPOCH: Epoch = Epoch(1);

/// A part of a server that can be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Receiver,
    Senders,
    Checkpointer,
    Startup,
    Backends,
}

/// What a client was told of its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Nothing yet.
    Waits,
    Done,
    /// Success, with a warning that nothing was waited for to the end.
    Warned,
    /// The connection is gone.
    Lost,
}

type Answer = oneshot::Receiver<Result<At, SqlError>>;

/// A primary `a` and its standbys, all running.
pub struct Modelled {
    sim: Sim,
    commits: Vec<(u64, Lsn, Answer, Option<Told>)>,
    stopped: Vec<(usize, Part, Vec<ProcId>)>,
}

impl Modelled {
    /// Starts a primary that waits as `names` say, and standbys that stream from it.
    pub fn start(names: &str) -> Self {
        let plan = Plan::new(1, Profile::named("calm").expect("a profile of the list"));
        let sim = Sim::new(1, plan.world());
        let own = Self { sim, commits: Vec::new(), stopped: Vec::new() };
        own.sim.with(|w| {
            w.spec.silent_after = PATIENCE;
            let branch = w.wal.fork(Timeline(1), None, EPOCH.0);
            let at = At { branch, lsn: w.wal.append(branch, 100) };
            for member in 0..w.members.len() {
                let name = w.members[member].name.clone();
                let disk = &mut w.members[member].disk;
                disk.data = Some(data(at, member > 0));
                disk.files = Some(files(name, member));
                disk.passfiles.insert(EPOCH);
                disk.settings = Some(settings(names, member));
            }
        });
        for member in 0..3 {
            own.sim.server_start(member);
        }
        own.goes_on_for(STARTS_WITHIN);
        own
    }

    fn rest(&self) {
        self.goes_on_for(REST);
    }

    fn goes_on_for(&self, micros: Micros) {
        self.sim.run_until(self.sim.now() + micros, |_| false);
    }

    fn server(&self, member: usize) -> Option<Pg> {
        let id = self.sim.with(|w| w.server(member).map(|s| s.id))?;
        Some(Pg { sim: self.sim.clone(), member, id })
    }

    fn change(&self, member: usize, change: impl FnOnce(&mut Settings)) {
        self.sim.with(|w| w.members[member].disk.settings.as_mut().map(change));
        if let Some(server) = self.server(member) {
            self.sim.server_reload(server);
        }
        self.rest();
    }

    /// Sets `synchronous_standby_names` and reloads.
    pub fn names(&self, member: usize, names: &str) {
        self.change(member, |settings| settings.standby_names = names.to_owned());
    }

    /// Takes the upstream away and reloads.
    pub fn cut_off(&self, member: usize) {
        self.change(member, |settings| settings.upstream = None);
    }

    /// Gives it another upstream and reloads.
    pub fn follow(&self, member: usize, of: usize) {
        self.change(member, |settings| settings.upstream = Some(upstream(of)));
    }

    /// Returns whether a session can be opened.
    pub fn runs(&self, member: usize) -> bool {
        self.sim.session(member).is_some()
    }

    pub fn commit(&mut self, number: u64, member: usize) {
        let Some(server) = self.server(member) else { return };
        let answer = server.commit(number, 500);
        self.rest();
        let branch = server.with(|s| s.branch);
        let end = branch.map_or(Lsn(0), |branch| self.sim.with(|w| w.wal.end(branch)));
        self.commits.push((number, end, answer, None));
    }

    /// Returns what the client of a commit was told by now.
    pub fn told(&mut self, number: u64) -> Told {
        let commit = self.commits.iter_mut().find(|c| c.0 == number).expect("it was begun");
        let heard = match commit.2.try_recv() {
            Ok(Ok(_)) => Some(Told::Done),
            Ok(Err(SqlError::Cancelled)) => Some(Told::Warned),
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => Some(Told::Lost),
            Err(oneshot::error::TryRecvError::Empty) => None,
        };
        commit.3 = commit.3.or(heard);
        commit.3.unwrap_or(Told::Waits)
    }

    /// Returns whether another session on `member` sees a commit; `None` where none can be opened.
    pub fn sees(&self, number: u64, member: usize) -> Option<bool> {
        let end = self.commits.iter().find(|c| c.0 == number)?.1;
        let server = self.sim.session(member)?;
        server.with(|s| s.visible >= end || s.exposed.contains(&end))
    }

    /// Returns whether `member` has a commit in its synced WAL.
    pub fn holds(&self, number: u64, member: usize) -> Option<bool> {
        let end = self.commits.iter().find(|c| c.0 == number)?.1;
        self.sim.with(|w| Some(w.flushed(member)?.lsn >= end))
    }

    /// Cancels whatever waits for standbys on `member`.
    pub fn cancel(&self, member: usize) {
        self.sim.with(|w| w.server(member).map(|s| s.cancel_clients()));
        self.rest();
    }

    /// Ends the sessions that wait for standbys on `member`.
    pub fn terminate(&self, member: usize) {
        self.sim.with(|w| w.server(member).map(|s| s.terminate_waiting()));
        self.rest();
    }

    pub fn stop(&mut self, member: usize, part: Part) {
        let procs: Vec<ProcId> = self.sim.with(|w| {
            let Some(server) = w.server(member) else { return Vec::new() };
            match part {
                Part::Receiver => server.receiver.iter().map(|r| r.proc).collect(),
                Part::Senders => server.senders.values().map(|s| s.proc).collect(),
                Part::Checkpointer => vec![server.checkpointer],
                Part::Startup => vec![server.startup],
                Part::Backends => vec![server.backends],
            }
        });
        procs.iter().for_each(|proc| self.sim.pause(*proc));
        self.stopped.push((member, part, procs));
        self.rest();
    }

    pub fn go_on(&mut self, member: usize, part: Part) {
        for (_, _, procs) in self.stopped.extract_if(.., |s| (s.0, s.1) == (member, part)) {
            procs.iter().for_each(|proc| self.sim.resume(*proc));
        }
        self.rest();
    }

    /// All processes of a server are killed.
    pub fn crash(&mut self, member: usize) {
        self.stopped.retain(|s| s.0 != member);
        self.sim.server_ends(member);
        self.rest();
    }

    /// Starts a server on the data that it left.
    pub fn start_again(&self, member: usize) {
        self.sim.server_start(member);
        self.goes_on_for(STARTS_WITHIN);
    }

    pub fn promote(&self, member: usize) {
        if let Some(server) = self.server(member) {
            server.with(|s| s.promote = true);
            server.tell();
        }
        self.rest();
    }

    /// Puts empty history files there.
    pub fn reserve(&self, member: usize, timelines: &[u32]) {
        self.sim.with(|w| {
            if let Some(data) = &mut w.members[member].disk.data {
                data.placeholders.extend(timelines);
            }
        });
    }

    /// Returns the timeline that a primary writes; `None` for whoever is none.
    pub fn writes(&self, member: usize) -> Option<u32> {
        self.sim.with(|w| {
            let branch = w.server(member).filter(|s| s.phase == Phase::Primary)?.branch;
            Some(w.wal.branch(branch).tli.0)
        })
    }

    /// Returns what `member` shows of its walsenders: the name, `sync_priority`, and whether it streams.
    pub fn senders(&self, member: usize) -> Vec<(String, i32, bool)> {
        let mut senders: Vec<_> = shown(&self.sim, member)
            .into_iter()
            .map(|s| (s.name, s.sync_priority, s.state == "streaming"))
            .collect();
        senders.sort();
        senders
    }
}

impl Drop for Modelled {
    fn drop(&mut self) {
        self.sim.tear_down();
    }
}

fn data(at: At, standby: bool) -> Data {
    Data {
        at,
        written: at,
        control: Timeline(1),
        clean: true,
        standby_signal: standby,
        histories: Default::default(),
        placeholders: Default::default(),
        piece: None,
        mixed: false,
        needed: None,
    }
}

fn files(member: proto::MemberName, number: usize) -> MemberFiles {
    MemberFiles {
        promise: EPOCH,
        epoch: EPOCH,
        role: if number == 0 { Role::Primary } else { Role::Standby },
        complete: true,
        ..MemberFiles::new(member, Incarnation::from_random(number as u64))
    }
}

fn settings(names: &str, member: usize) -> Settings {
    let upstream = (member > 0).then(|| upstream(0));
    let standby_names = if member == 0 { names.to_owned() } else { String::new() };
    Settings { standby_names, upstream, access: Access::Open, eager: true }
}

fn upstream(of: usize) -> Upstream {
    Upstream {
        epoch: EPOCH,
        host: format!("10.0.0.{of}"),
        port: 5432,
        name: StreamName::Voter { round: 0 },
    }
}
