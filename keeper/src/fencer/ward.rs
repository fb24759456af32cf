//! PostgreSQL in the fencer's care: started, watched, fenced, reaped. Knows nothing of sockets; what it has to say
//! comes back as `Said`.
//!
//! Its rule: from the moment an end begins, by the postmaster's death or by a fence, nothing but *gone* ends it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use proto::Moment;

use super::cage::Cage;
use super::fence::{self, ORPHAN_PATIENCE, QUIT_PATIENCE};
use super::launch::launch;
use super::limit::Limit;
use super::processes::Process;
use super::protocol::{
    Answer, Exit, FenceReason, FenceWay, Fenced, FencerEvent, PROTOCOL, Postmaster, Refusal,
    StartPostgres, Watched,
};
use super::stale_lock::clear_stale_locks;

/// How often processes are looked for that send no SIGCHLD; a look costs 1 to 5 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The same after a second: what is left then waits for a disk, and looking often does not help it.
const LOOK_AGAIN_LATE: Duration = Duration::from_millis(50);

/// After this time whoever asked for the fence hears that it is not complete. It goes on.
const FENCE_PATIENCE: Duration = Duration::from_secs(3);

/// What the server passes on to the keeper or writes into the log.
pub enum Said {
    Event(FencerEvent),
    Answer {
        id: u64,
        outcome: Result<Answer, Refusal>,
    },
    Note(String),
    /// A child that was not the postmaster has ended, with this status unless it was killed.
    ChildEnded {
        pid: u32,
        code: Option<i32>,
    },
}

pub struct Ward {
    /// As the keeper named it; may be a symbolic link that points elsewhere at the next start.
    given: PathBuf,
    /// Its real path at the last start, the one that the kernel shows for its processes.
    data_dir: PathBuf,
    postmaster: Option<Postmaster>,
    limit: Limit,
    ending: Option<Ending>,
    last_exit: Option<Exit>,
    said: Vec<Said>,
    /// The keeper that the fencer has started: its child, and none of PostgreSQL's processes.
    keeper: Option<u32>,
    cage: Option<Cage>,
}

/// The time between the postmaster's death, or the order to fence, and *gone*.
struct Ending {
    /// `None`: the postmaster ended by itself.
    why: Option<FenceReason>,
    since: Moment,
    kill_from: Moment,
    killed: BTreeSet<u32>,
    /// The requests to answer once it is complete.
    asked: Vec<u64>,
}

impl Ending {
    fn begun(why: Option<FenceReason>, now: Moment, patience: Duration) -> Self {
        let (killed, asked) = (BTreeSet::new(), Vec::new());
        Self { why, since: now, kill_from: now + patience, killed, asked }
    }
}

impl Ward {
    /// Takes the data directory into care. It need not exist yet.
    pub fn of(data_dir: &Path) -> Self {
        Self {
            given: data_dir.to_path_buf(),
            data_dir: real_path(data_dir),
            postmaster: None,
            limit: Limit::none(),
            ending: None,
            last_exit: None,
            said: Vec::new(),
            keeper: None,
            cage: None,
        }
    }

    /// Takes a cgroup into which PostgreSQL is started from now on.
    pub fn take_cage(&mut self, cage: Cage) {
        self.cage = Some(cage);
    }

    /// Notes which child is the keeper.
    pub fn keeper_is(&mut self, pid: Option<u32>) {
        self.keeper = pid;
    }

    /// Starts PostgreSQL, unless any process of the data directory lives.
    pub fn start(&mut self, start: &StartPostgres, now: Moment) -> Result<Answer, Refusal> {
        if let Some(postmaster) = &self.postmaster {
            return Err(Refusal::AlreadyRuns { pid: postmaster.pid });
        }
        let mut limit = self.limit;
        limit.set(start.deadline, now)?;
        if limit.has_passed(now) {
            return Err(Refusal::Passed);
        }
        self.data_dir = real_path(&self.given);
        let strays = self.strays();
        if !strays.is_empty() || self.ending.is_some() {
            return Err(Refusal::Occupied { pids: strays });
        }
        for removed in clear_stale_locks(&self.data_dir) {
            self.note(format!("removed {}: its process is dead", removed.display()));
        }
        let postmaster = launch(start, &self.data_dir, self.cage.as_ref())
            .map_err(|problem| Refusal::NotStarted { problem })?;
        let pid = postmaster.pid;
        // A zombie has no start time, and has left its cgroup.
        let lives = postmaster.start_ticks > 0;
        if let Some(cage) = self.cage.take_if(|cage| lives && !cage.holds(pid)) {
            self.note(format!("pid {pid} is not in {}, which is given up", cage.dir().display()));
        }
        self.note(format!("started pid {pid}, {}", serve_until_text(start.deadline, now)));
        self.postmaster = Some(postmaster);
        self.limit = limit;
        Ok(Answer::Started { pid })
    }

    /// Lets PostgreSQL serve until `until`, or without a limit as a standby.
    pub fn serve_until(&mut self, until: Option<Moment>, now: Moment) -> Result<Answer, Refusal> {
        if self.postmaster.is_none() || self.ending.is_some() {
            return Err(Refusal::NotRunning);
        }
        let had_one = self.limit.until().is_some();
        self.limit.set(until, now)?;
        if had_one != until.is_some() {
            self.note(serve_until_text(until, now));
        }
        Ok(Answer::Done)
    }

    /// Sets the longest time ahead that `serve_until` accepts.
    pub fn lease_at_most(&mut self, at_most: Duration) {
        self.limit.at_most(at_most);
    }

    /// Sends a signal to the postmaster.
    pub fn signal(&mut self, signal: &str) -> Result<Answer, Refusal> {
        let postmaster = self.postmaster.as_ref().ok_or(Refusal::NotRunning)?;
        let problem = |errno: Errno| Refusal::NotSignalled { problem: errno.desc().to_string() };
        let known: Signal = signal.parse().map_err(problem)?;
        // Only this process reaps it, so its pid cannot have gone to another one.
        nix::sys::signal::kill(Pid::from_raw(postmaster.pid as i32), known).map_err(problem)?;
        if known != Signal::SIGHUP {
            let note = format!("{signal} to pid {}", postmaster.pid);
            self.note(note);
        }
        Ok(Answer::Done)
    }

    /// Begins to fence, or joins the end that is under way. `asked` is answered once no process is left.
    pub fn fence(&mut self, why: FenceReason, asked: Option<u64>, now: Moment) {
        self.limit.clear();
        if let Some(ending) = &mut self.ending {
            ending.why.get_or_insert(why);
            ending.kill_from = ending.kill_from.min(now + QUIT_PATIENCE);
            ending.asked.extend(asked);
            return;
        }
        // The postmaster first: finding the others takes time in which it could go on serving.
        if self.postmaster.is_some() {
            let _ = self.signal("SIGQUIT");
        } else if !self.quit_strays() {
            let nothing = Fenced { took: Duration::ZERO, killed: 0 };
            let outcome = Ok(Answer::Fenced(nothing));
            self.said.extend(asked.map(|id| Said::Answer { id, outcome }));
            // A keeper that does not know whether an order to start was carried out hears that nothing lives.
            self.said.push(Said::Event(FencerEvent::Gone));
            return;
        }
        self.note(format!("fencing: {why:?}"));
        let mut ending = Ending::begun(Some(why), now, QUIT_PATIENCE);
        ending.asked.extend(asked);
        self.ending = Some(ending);
    }

    /// Returns whether nothing is in its care: no postmaster, and no end under way.
    pub fn is_idle(&self) -> bool {
        self.postmaster.is_none() && self.ending.is_none()
    }

    /// Returns whether nothing has to be fenced, now or at a given time, so that a hung disk may be waited for.
    pub fn is_calm(&self) -> bool {
        self.ending.is_none() && self.limit.until().is_none()
    }

    /// Refuses while PostgreSQL runs or is coming to its end.
    pub fn check_idle(&self) -> Result<(), Refusal> {
        match (&self.postmaster, &self.ending) {
            (Some(postmaster), _) => Err(Refusal::AlreadyRuns { pid: postmaster.pid }),
            (None, Some(_)) => Err(Refusal::Occupied { pids: self.strays() }),
            (None, None) => Ok(()),
        }
    }

    /// Answers nobody who has asked for a fence so far.
    pub fn forget_requests(&mut self) {
        self.ending.iter_mut().for_each(|e| e.asked.clear());
    }

    /// Returns what a keeper that connects has to know.
    pub fn watched(&self) -> Watched {
        Watched {
            protocol: PROTOCOL,
            fencer_pid: std::process::id(),
            data_dir: self.given.clone(),
            postmaster: self.postmaster.clone(),
            deadline: self.limit.until(),
            ending: self.ending.is_some(),
            strays: if self.postmaster.is_some() { Vec::new() } else { self.strays() },
            last_exit: self.last_exit.clone(),
            way: self.cage.as_ref().map_or(FenceWay::Processes, Cage::way),
        }
    }

    /// Does all that is due at `now` and returns what there is to say.
    pub fn advance(&mut self, now: Moment) -> Vec<Said> {
        let children_live = self.reap(now);
        if self.ending.is_none() && self.limit.has_passed(now) {
            self.fence(FenceReason::Deadline, None, now);
        }
        self.pursue(children_live, now);
        std::mem::take(&mut self.said)
    }

    /// Returns when `advance` has to be called though no child has ended.
    pub fn wake_at(&self, now: Moment) -> Option<Moment> {
        let Some(ending) = &self.ending else { return self.limit.until() };
        if self.postmaster.is_some() && now < ending.kill_from {
            return Some(ending.kill_from);
        }
        let late = now.since(ending.since) > Duration::from_secs(1);
        Some(now + if late { LOOK_AGAIN_LATE } else { LOOK_AGAIN })
    }

    /// Collects what has ended; returns whether any child still lives. With the keeper among them this cannot tell:
    /// then only a look at all processes does.
    fn reap(&mut self, now: Moment) -> bool {
        loop {
            let (pid, status, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    (pid, format!("exited with status {code}"), code)
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, format!("killed by {signal}"), -1)
                }
                Ok(WaitStatus::StillAlive) => return self.keeper.is_none(),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return false,
            };
            if self.postmaster.as_ref().is_some_and(|p| p.pid as i32 == pid.as_raw()) {
                self.exited(status, code == 0, now);
            } else {
                let (pid, code) = (pid.as_raw().unsigned_abs(), (code >= 0).then_some(code));
                self.keeper.take_if(|keeper| *keeper == pid);
                self.said.push(Said::ChildEnded { pid, code });
            }
        }
    }

    fn exited(&mut self, status: String, zero: bool, now: Moment) {
        let Some(postmaster) = self.postmaster.take() else { return };
        let fenced = self.ending.as_ref().is_some_and(|e| e.why.is_some());
        let exit =
            Exit { pid: postmaster.pid, status, clean: zero && !fenced, at: store::clock::wall() };
        self.note(format!("pid {} {}", exit.pid, exit.status));
        let Exit { pid, status, clean, at } = exit.clone();
        self.said.push(Said::Event(FencerEvent::Exited { pid, status, clean, at }));
        self.last_exit = Some(exit);
        self.limit.clear();
        let ending = self.ending.get_or_insert(Ending::begun(None, now, ORPHAN_PATIENCE));
        ending.kill_from = ending.kill_from.min(now + ORPHAN_PATIENCE);
    }

    /// Looks whether all processes are gone, and kills those that have had their time.
    fn pursue(&mut self, children_live: bool, now: Moment) {
        let Some(ending) = &self.ending else { return };
        let overdue = now >= ending.kill_from;
        let some_live = self.postmaster.is_some() || children_live;
        if some_live && !overdue {
            return;
        }
        let left = self.left();
        // Two looks, because one can miss a process whose parent ends while it is taken.
        if !some_live && left.is_empty() && self.left().is_empty() {
            return self.gone();
        }
        let Some(ending) = &mut self.ending else { return };
        if !overdue {
            return;
        }
        let caged = self.cage.as_ref().map(Cage::kill);
        let mut problems = fence::kill(&left);
        problems.extend(caged.and_then(Result::err).map(|e| format!("kill the cgroup: {e}")));
        ending.killed.extend(left.iter().map(|p| p.pid));
        if now.since(ending.since) > FENCE_PATIENCE {
            let refusal = Refusal::StillAlive { pids: pids(&left) };
            for id in std::mem::take(&mut ending.asked) {
                self.said.push(Said::Answer { id, outcome: Err(refusal.clone()) });
            }
        }
        problems.into_iter().for_each(|p| self.note(p));
    }

    fn gone(&mut self) {
        let Some(ending) = self.ending.take() else { return };
        let took = store::clock::now().since(ending.since);
        let fenced = Fenced { took, killed: ending.killed.len() };
        self.note(format!("gone after {} ms, {} killed", took.as_millis(), fenced.killed));
        for id in ending.asked {
            self.said.push(Said::Answer { id, outcome: Ok(Answer::Fenced(fenced)) });
        }
        if let Some(why) = ending.why {
            self.said.push(Said::Event(FencerEvent::Fenced { why, took }));
        }
        self.said.push(Said::Event(FencerEvent::Gone));
    }
}

impl Ward {
    /// Asks for an immediate stop of what an earlier fencer left; returns whether there was anything.
    fn quit_strays(&mut self) -> bool {
        let left = self.left();
        fence::quit(&left).into_iter().for_each(|p| self.note(p));
        !left.is_empty()
    }

    fn strays(&self) -> Vec<u32> {
        pids(&self.left())
    }

    fn left(&self) -> Vec<Process> {
        fence::left(&self.data_dir, self.keeper)
    }

    fn note(&mut self, text: String) {
        self.said.push(Said::Note(text));
    }
}

fn pids(processes: &[Process]) -> Vec<u32> {
    processes.iter().map(|p| p.pid).collect()
}

fn serve_until_text(until: Option<Moment>, now: Moment) -> String {
    match until {
        Some(until) => format!("may serve for {} ms at first", until.since(now).as_millis()),
        None => "may serve without a limit, as a standby".into(),
    }
}

/// Returns the path that the kernel shows for a process in `given`, also while that does not exist yet.
pub fn real_path(given: &Path) -> PathBuf {
    let resolve = |path: &Path| path.canonicalize().ok();
    let beside = || Some(resolve(given.parent()?)?.join(given.file_name()?));
    resolve(given).or_else(beside).unwrap_or_else(|| given.to_path_buf())
}
