//! The fencer as the simulated keepers meet it: the parent of PostgreSQL, with the product's own rule of time.
//!
//! The one rule: it answers only while it runs, and what it was told before it was paused still holds after.

use std::time::Duration;

use keeper::fencer::limit::Limit;
use proto::{Moment, WallTime};
use tokio::sync::{mpsc, oneshot};

use super::executor::{Micros, Node, ProcId, Sim};
use super::net::Host;
use super::postgres::Pg;
use super::rng::Stream;

/// How long an immediate stop may take before processes are killed, and how long orphans may live.
const QUIT_PATIENCE: Micros = 250_000;
const ORPHAN_PATIENCE: Micros = 50_000;
/// What a keeper waits for an answer.
const ANSWER_PATIENCE: Micros = 2_000_000;
const FENCE_PATIENCE: Micros = 5_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Exited { at: WallTime },
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    AlreadyRuns,
    Occupied,
    Passed,
    TooFar,
    NotRunning,
    /// The fencer does not answer, or is gone.
    NoAnswer,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the fencer: {self:?}")
    }
}

impl std::error::Error for Refusal {}

/// What a keeper that connects is told.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    pub pid: Option<u32>,
    pub ending: bool,
    pub deadline: Option<Moment>,
}

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

enum Command {
    Hello(mpsc::UnboundedSender<Event>, Reply<Watched>),
    Start(Option<Moment>, Reply<u32>),
    ServeUntil(Option<Moment>),
    LeaseAtMost(Duration),
    Hangup(Reply<()>),
    Fence(Reply<()>),
    ChildEnded,
}

/// A running fencer.
#[derive(Clone)]
pub struct Fencer {
    pub proc: ProcId,
    commands: mpsc::UnboundedSender<Command>,
}

struct Ending {
    kill_from: Micros,
    quits_at: Option<Micros>,
    asked: Vec<Reply<()>>,
    exited: bool,
}

struct Ward {
    host: Host,
    member: usize,
    limit: Limit,
    ending: Option<Ending>,
    keeper: Option<mpsc::UnboundedSender<Event>>,
}

impl Sim {
    /// Starts a fencer for `member`, unless one runs.
    pub fn fencer(&self, member: usize) -> Fencer {
        let known = self.with(|w| w.members[member].fencer.clone());
        if let Some(fencer) = known.filter(|f| self.is_alive(f.proc)) {
            return fencer;
        }
        let proc = self.start_process(Node::Member(member));
        let (commands, received) = mpsc::unbounded_channel();
        let fencer = Fencer { proc, commands };
        self.with(|w| w.members[member].fencer = Some(fencer.clone()));
        let host = self.host(Node::Member(member));
        let ward = Ward { host, member, limit: Limit::none(), ending: None, keeper: None };
        self.spawn(proc, ward.run(received));
        fencer
    }

    /// The kernel tells the fencer that its child has ended.
    pub fn child_ended(&self, member: usize) {
        if let Some(fencer) = self.with(|w| w.members[member].fencer.clone()) {
            let _ = fencer.commands.send(Command::ChildEnded);
        }
    }

    /// The fencer dies: PostgreSQL gets its parent's death signal.
    pub fn fencer_dies(&self, member: usize) {
        let Some(fencer) = self.with(|w| w.members[member].fencer.take()) else { return };
        self.kill(fencer.proc);
        let after = self.now() + self.between(Stream::Postgres, 5_000, 30_000);
        let id = self.with(|w| w.server(member).map(|s| s.id));
        self.at(after, move |sim| {
            if sim.with(|w| w.server(member).map(|s| s.id)) == id && id.is_some() {
                sim.server_ends(member);
            }
        });
    }
}

impl Ward {
    async fn run(mut self, mut received: mpsc::UnboundedReceiver<Command>) {
        let sim = self.host.sim.clone();
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                command = received.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = sim.sleep_until(wake) => {}
            }
            self.advance();
        }
    }

    fn wake_at(&self) -> Micros {
        let sim = &self.host.sim;
        match &self.ending {
            Some(ending) => {
                let next = ending.quits_at.unwrap_or(ending.kill_from).min(ending.kill_from);
                next.max(sim.now() + 1_000)
            }
            None => self.limit.until().map_or(u64::MAX / 4, |until| self.host.true_time(until) + 1),
        }
    }

    fn pid(&self) -> Option<u32> {
        let member = self.member;
        self.host.sim.with(|w| w.server(member).filter(|s| s.postmaster_lives).map(|s| s.pid))
    }

    fn obey(&mut self, command: Command) {
        let now = self.host.now();
        match command {
            Command::Hello(events, reply) => {
                self.keeper = Some(events);
                if self.host.sim.mutant("hello-clears-the-limit") {
                    self.limit.clear();
                }
                let deadline = self.limit.until();
                let watched = Watched { pid: self.pid(), ending: self.ending.is_some(), deadline };
                let _ = reply.send(Ok(watched));
            }
            Command::Start(deadline, reply) => {
                let _ = reply.send(self.start(deadline, now));
            }
            Command::ServeUntil(until) => {
                if self.pid().is_some() && self.ending.is_none() {
                    let _ = self.limit.set(until, now);
                }
            }
            Command::LeaseAtMost(at_most) => self.limit.at_most(at_most),
            Command::Hangup(reply) => {
                let result = self.pid().ok_or(Refusal::NotRunning).map(|_| {
                    let id = self.host.sim.with(|w| w.server(self.member).map_or(0, |s| s.id));
                    let pg = Pg { sim: self.host.sim.clone(), member: self.member, id };
                    self.host.sim.server_reload(pg);
                });
                let _ = reply.send(result);
            }
            Command::Fence(reply) => self.fence(Some(reply)),
            Command::ChildEnded => self.exited(),
        }
    }

    fn start(&mut self, deadline: Option<Moment>, now: Moment) -> Result<u32, Refusal> {
        if self.pid().is_some() {
            return Err(Refusal::AlreadyRuns);
        }
        let mut limit = self.limit;
        limit.set(deadline, now).map_err(|_| Refusal::TooFar)?;
        if limit.has_passed(now) {
            return Err(Refusal::Passed);
        }
        if self.ending.is_some() || self.host.sim.with(|w| w.members[self.member].server.is_some())
        {
            return Err(Refusal::Occupied);
        }
        self.limit = limit;
        Ok(self.host.sim.server_start(self.member))
    }

    fn fence(&mut self, asked: Option<Reply<()>>) {
        let sim = self.host.sim.clone();
        self.limit.clear();
        if let Some(ending) = &mut self.ending {
            ending.kill_from = ending.kill_from.min(sim.now() + QUIT_PATIENCE);
            ending.asked.extend(asked);
            return;
        }
        if sim.with(|w| w.members[self.member].server.is_none()) {
            if let Some(reply) = asked {
                let _ = reply.send(Ok(()));
            }
            self.say(Event::Gone);
            return;
        }
        if sim.mutant("fence-terminates-backends") {
            sim.with(|w| w.server(self.member).map(|s| s.terminate_waiting()));
        }
        let quits = sim.between(Stream::Postgres, 10_000, 30_000);
        self.ending = Some(Ending {
            kill_from: sim.now() + QUIT_PATIENCE,
            quits_at: Some(sim.now() + quits),
            asked: asked.into_iter().collect(),
            exited: false,
        });
    }

    /// The postmaster has ended: what is left of it is ended too.
    fn exited(&mut self) {
        let sim = self.host.sim.clone();
        self.limit.clear();
        self.say(Event::Exited { at: self.host.wall() });
        let from = sim.now() + ORPHAN_PATIENCE;
        let own = sim.now() + sim.between(Stream::Postgres, 2_000, 70_000);
        let ending = self.ending.get_or_insert(Ending {
            kill_from: from,
            quits_at: Some(own),
            asked: Vec::new(),
            exited: true,
        });
        ending.exited = true;
        ending.kill_from = ending.kill_from.min(from);
    }

    fn advance(&mut self) {
        let sim = self.host.sim.clone();
        if self.ending.is_none() && self.limit.has_passed(self.host.now()) {
            self.fence(None);
        }
        let Some(ending) = &mut self.ending else { return };
        let now = sim.now();
        let member = self.member;
        let procs = sim.with(|w| w.server(member).map(|s| s.processes())).unwrap_or_default();
        let stuck = procs.iter().any(|p| sim.is_paused(*p));
        let quit = ending.quits_at.is_some_and(|at| now >= at) && !stuck;
        if !procs.is_empty() && !quit && now < ending.kill_from {
            if stuck {
                ending.quits_at = None;
            }
            return;
        }
        sim.server_ends(member);
        let Some(ended) = self.ending.take() else { return };
        if !ended.exited {
            self.say(Event::Exited { at: self.host.wall() });
        }
        for reply in ended.asked {
            let _ = reply.send(Ok(()));
        }
        self.say(Event::Gone);
    }

    fn say(&self, event: Event) {
        if let Some(keeper) = &self.keeper {
            let _ = keeper.send(event);
        }
    }
}

/// A keeper's connection to its fencer.
#[derive(Clone)]
pub struct Client {
    sim: Sim,
    fencer: Fencer,
}

impl Client {
    /// Connects; events come out of the returned channel until the fencer dies.
    pub async fn attach(
        sim: &Sim,
        member: usize,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>, Watched), Refusal> {
        let fencer = sim.fencer(member);
        let client = Self { sim: sim.clone(), fencer };
        let (events, received) = mpsc::unbounded_channel();
        let watched = client.ask(ANSWER_PATIENCE, |reply| Command::Hello(events, reply)).await?;
        Ok((client, received, watched))
    }

    async fn ask<T>(
        &self,
        patience: Micros,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Refusal> {
        let (reply, answered) = oneshot::channel();
        self.sim.sleep(self.sim.between(Stream::Keeper, 20, 200)).await;
        self.fencer.commands.send(command(reply)).map_err(|_| Refusal::NoAnswer)?;
        match self.sim.within(patience, answered).await {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(Refusal::NoAnswer),
        }
    }

    pub async fn start(&self, deadline: Option<Moment>) -> Result<u32, Refusal> {
        self.ask(ANSWER_PATIENCE, |reply| Command::Start(deadline, reply)).await
    }

    pub async fn fence(&self) -> Result<(), Refusal> {
        self.ask(FENCE_PATIENCE, Command::Fence).await
    }

    pub async fn hang_up(&self) -> Result<(), Refusal> {
        self.ask(ANSWER_PATIENCE, Command::Hangup).await
    }

    pub fn serve_until(&self, until: Option<Moment>) {
        let _ = self.fencer.commands.send(Command::ServeUntil(until));
    }

    pub fn lease_at_most(&self, at_most: Duration) {
        let _ = self.fencer.commands.send(Command::LeaseAtMost(at_most));
    }
}
