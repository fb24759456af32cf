//! The fencer's loop: one `poll` over signals, the deadline, the listener and at most two connections.
//!
//! Commands that have arrived are done before the deadline is looked at: a renewal that was sent in time counts,
//! also when the machine gave the fencer no CPU before the old deadline had passed.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use proto::Moment;
use store::clock::now;

use super::cage::Cage;
use super::connection::Connection;
use super::log::Log;
use super::protocol::{Answer, Command, FenceReason, Message, PROTOCOL, Refusal, Request};
use super::revival::Revival;
use super::ward::{Said, Ward};
use super::{FencerArgs, lock_path, log_path, shelter, socket_path};

/// The first line on standard output once the socket answers.
pub const READY: &str = "ready";

/// A fencer that nobody can reach any more ends by itself; nothing depends on how soon.
const FORSAKEN_LOOKS_EVERY_MS: u16 = 5_000;

/// Exit status when another fencer holds the lock.
pub const LOCKED: i32 = 75;

/// Runs the fencer until it is told to exit; returns the exit status.
///
/// Must be called in a process with one thread. Says `ready`, or what is wrong, as one line on standard output.
pub fn main(args: FencerArgs) -> i32 {
    // The working directory changes on the way.
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let args =
        FencerArgs { state_dir: absolute(&args.state_dir), data_dir: absolute(&args.data_dir) };
    let lock = match lock(&args.state_dir) {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            return say(&format!("another fencer runs in {}", args.state_dir.display()), LOCKED);
        }
        Err(error) => return say(&format!("{error:#}"), 1),
    };
    match Server::open(&args) {
        Ok(mut server) => {
            server.serve();
            // Only the holder of the lock removes the socket, so it is not a successor's.
            let _ = std::fs::remove_file(socket_path(&args.state_dir));
            drop(lock);
            0
        }
        Err(error) => say(&format!("{error:#}"), 1),
    }
}

fn say(line: &str, status: i32) -> i32 {
    let _ = writeln!(io::stdout(), "{line}");
    status
}

/// Takes the lock that makes this the only fencer of the state directory; `None` if another one holds it.
fn lock(state_dir: &Path) -> anyhow::Result<Option<File>> {
    let path = lock_path(state_dir);
    let context = || format!("lock {}", path.display());
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error).with_context(context),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(context)?;
    Ok(Some(file))
}

struct Server {
    listener: UnixListener,
    signals: SignalFd,
    timer: TimerFd,
    log: Log,
    ward: Ward,
    revival: Revival,
    /// The connection that may command.
    keeper: Option<Connection>,
    /// The last one accepted that has not said hello.
    newcomer: Option<Connection>,
    /// Where keepers find this fencer.
    socket: PathBuf,
    leaving: bool,
}

impl Server {
    fn open(args: &FencerArgs) -> anyhow::Result<Self> {
        if threads() > 1 {
            bail!(
                "the fencer was called in a process with several threads: call it before any is started"
            );
        }
        let signals = shelter::signals().context("take the signals")?;
        let mut options = OpenOptions::new();
        let log_file =
            options.append(true).create(true).mode(0o600).open(log_path(&args.state_dir));
        let log_file = log_file.context("open the fencer's log")?;
        let listener = listen(&socket_path(&args.state_dir))?;
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .context("make a timer")?;
        let mut ward = Ward::of(&args.data_dir);
        shelter::detach().context("leave the keeper's session")?;
        let stderr = log_file.try_clone().context("share the log")?;
        let mut log = Log::to(log_file);
        log.note(format!("fencer {} of {} begins", std::process::id(), args.data_dir.display()));
        shelter::harden().iter().for_each(|refused| log.note(refused));
        match Cage::make() {
            Ok(cage) => {
                log.note(format!("fences by {} of {}", cage.way(), cage.dir().display()));
                ward.take_cage(cage);
            }
            Err(why) => log.note(format!("fences by killing process by process: {why}")),
        }
        log.write();
        say(READY, 0);
        leave_standard_streams(&stderr).context("leave the standard streams")?;
        let (keeper, newcomer) = (None, None);
        let socket = socket_path(&args.state_dir);
        let revival = Revival::default();
        let leaving = false;
        Ok(Self { listener, signals, timer, log, ward, revival, keeper, newcomer, socket, leaving })
    }

    /// Runs until nothing is in care and it is to leave. It has no other bound: it is there for PostgreSQL's life.
    fn serve(&mut self) {
        while !(self.leaving && self.ward.is_idle()) {
            // Whatever became of the waiting: what is due gets done.
            let _ = self.wait();
            self.take_signals();
            self.take_commands();
            self.accept();
            let said = self.ward.advance(now());
            said.into_iter().for_each(|said| self.tell(said));
            self.newcomer.take_if(|c| c.ended);
            self.look_after_the_keeper();
            if self.is_forsaken() && !self.socket.exists() {
                self.log.note("the state directory is gone, and nothing is left to guard");
                self.leaving = true;
            }
            if self.ward.is_calm() {
                self.log.write();
            }
        }
        self.log.note("fencer ends");
        self.log.write();
    }

    /// Starts the keeper again if it has died and asked for that.
    fn look_after_the_keeper(&mut self) {
        if self.keeper.take_if(|c| c.ended).is_some() {
            self.revival.lost(now());
        }
        if !self.leaving
            && self.keeper.is_none()
            && let Some(line) = self.revival.advance(now())
        {
            self.log.note(line);
        }
        self.ward.keeper_is(self.revival.child());
    }

    fn wait(&mut self) -> nix::Result<()> {
        let due = self.revival.wake_at().filter(|_| self.keeper.is_none() && !self.leaving);
        match self.ward.wake_at(now()).into_iter().chain(due).min() {
            Some(at) => self.timer.set(expiration(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?,
            None => self.timer.unset()?,
        }
        let connections = [&self.keeper, &self.newcomer].into_iter().flatten().map(AsFd::as_fd);
        let fds = [self.signals.as_fd(), self.timer.as_fd(), self.listener.as_fd()];
        let mut polled: Vec<PollFd> = fds
            .into_iter()
            .chain(connections)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let patience = match self.is_forsaken() {
            true => PollTimeout::from(FORSAKEN_LOOKS_EVERY_MS),
            false => PollTimeout::NONE,
        };
        match poll(&mut polled, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Returns whether nobody is there to command it, and nothing to guard.
    fn is_forsaken(&self) -> bool {
        let nobody = self.keeper.is_none() && self.newcomer.is_none();
        nobody && self.ward.is_idle() && !self.revival.is_under_way()
    }

    fn take_signals(&mut self) {
        while let Ok(Some(taken)) = self.signals.read_signal() {
            let signal = Signal::try_from(taken.ssi_signo as i32);
            if signal == Ok(Signal::SIGTERM) {
                self.log.note(format!("SIGTERM from pid {}", taken.ssi_pid));
                self.leaving = true;
                // What somebody else has started here, such as pg_rewind, is not the fencer's to end unasked.
                if self.ward.is_idle() {
                    continue;
                }
                self.ward.fence(FenceReason::Terminated, None, now());
            }
        }
    }

    fn take_commands(&mut self) {
        let lines = self.keeper.as_mut().map(Connection::lines).unwrap_or_default();
        lines.iter().for_each(|line| self.command(line));
        let Some(mut newcomer) = self.newcomer.take() else { return };
        let lines = newcomer.lines();
        let Some((hello, more)) = lines.split_first() else {
            self.newcomer = Some(newcomer);
            return;
        };
        match check_hello(hello) {
            Ok(id) => {
                self.log.note("a keeper has connected");
                // Whoever asked for a fence before is gone; the numbers of its requests mean others now.
                self.ward.forget_requests();
                self.revival.connected(newcomer.peer(), now());
                self.keeper = Some(newcomer);
                self.tell(Said::Answer { id, outcome: Ok(Answer::Watched(self.ward.watched())) });
                more.iter().for_each(|line| self.command(line));
            }
            Err((id, refusal)) => newcomer.send(&Message::Answer { id, outcome: Err(refusal) }),
        }
    }

    fn command(&mut self, line: &str) {
        let (id, command) = match read(line) {
            Ok(request) => (request.id, request.command),
            Err(refusal) => return self.tell(Said::Answer { id: 0, outcome: Err(refusal) }),
        };
        let outcome = match command {
            Command::Hello { .. } => Ok(Answer::Watched(self.ward.watched())),
            Command::LeaseAtMost { ms } => {
                self.ward.lease_at_most(Duration::from_millis(ms));
                Ok(Answer::Done)
            }
            Command::Start(start) => self.ward.start(&start, now()),
            Command::ServeUntil { until } => self.ward.serve_until(until, now()),
            Command::Signal { signal } => self.ward.signal(&signal),
            Command::Restart { keeper } => {
                let output = self.keeper.as_mut().and_then(|c| c.passed.take());
                self.revival.asked(keeper, output);
                Ok(Answer::Done)
            }
            // Answered by the ward once no process is left.
            Command::Fence => return self.ward.fence(FenceReason::Asked, Some(id), now()),
            Command::Exit => self.ward.check_idle().map(|()| {
                self.leaving = true;
                Answer::Done
            }),
        };
        self.tell(Said::Answer { id, outcome });
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.newcomer = Connection::new(stream).ok();
        }
    }

    fn tell(&mut self, said: Said) {
        let message = match said {
            Said::Note(text) => return self.log.note(text),
            Said::ChildEnded { pid, code } => {
                if self.revival.reaped(pid, code, now()) {
                    self.log.note(format!("the keeper {pid} has ended"));
                }
                return;
            }
            Said::Answer { id, outcome } => Message::Answer { id, outcome },
            Said::Event(event) => Message::Event(event),
        };
        if let Message::Answer { outcome: Err(refusal), .. } = &message {
            self.log.note(format!("refused: {refusal}"));
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.send(&message);
        }
    }
}

fn read(line: &str) -> Result<Request, Refusal> {
    serde_json::from_str(line).map_err(|e| Refusal::Unreadable { problem: e.to_string() })
}

fn check_hello(line: &str) -> Result<u64, (u64, Refusal)> {
    let request = read(line).map_err(|refusal| (0, refusal))?;
    match request.command {
        Command::Hello { protocol: PROTOCOL } => Ok(request.id),
        Command::Hello { .. } => Err((request.id, Refusal::OtherProtocol { speaks: PROTOCOL })),
        _ => Err((request.id, Refusal::NoHello)),
    }
}

fn expiration(at: Moment) -> Expiration {
    Expiration::OneShot(TimeSpec::from_duration(at.boot_time()))
}

/// Listens on `path`. The lock is held, so what lies there is what a fencer left that did not end by itself.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let context = || {
        format!(
            "listen on {} (a socket's path has at most 107 bytes: choose a shorter --state-dir)",
            path.display()
        )
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(context);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(context)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(context)?;
    listener.set_nonblocking(true).with_context(context)?;
    Ok(listener)
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Lets go of the keeper's streams: it may wait for their end. A panic's message goes to the log.
fn leave_standard_streams(log: &File) -> anyhow::Result<()> {
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&nothing)?;
    nix::unistd::dup2_stdout(&nothing)?;
    nix::unistd::dup2_stderr(log)?;
    Ok(())
}
