//! The keeper's side of the fencer: finds the one that runs or starts one, and talks to it.
//!
//! Nothing here waits without a bound, and dropping every `Fencer` leaves the fencer and its PostgreSQL as they are.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use proto::Moment;
use store::clock::now;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::protocol::{
    Answer, Command, Fenced, FencerEvent, KeeperCommand, Message, PROTOCOL, Refusal, Request,
    StartPostgres, Watched, encode,
};
use super::server::READY;
use super::socket_path;

/// An old fencer may have to fence first, which is bounded by 3 s where no disk hangs; a new one starts in 50 ms.
const ATTACH_PATIENCE: Duration = Duration::from_secs(5);

/// The fencer answers within milliseconds unless the machine gives it no CPU.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Longer than the fencer itself waits before it says that a fence is not complete.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);

/// How to start a fencer; `--state-dir` and `--data-dir` are added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FencerCommand {
    pub program: PathBuf,
    pub args: Vec<String>,
}

impl FencerCommand {
    /// Returns the hidden subcommand of the running program, even if its file has been replaced meanwhile.
    pub fn own() -> Self {
        Self { program: "/proc/self/exe".into(), args: vec!["fencer".into()] }
    }
}

impl KeeperCommand {
    /// Returns how this process was started. The program is the one that stands now where it was found, which after an
    /// upgrade is the new one.
    pub fn own() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let program = program.to_string_lossy().trim_end_matches(" (deleted)").into();
        let text = |s: OsString| s.to_string_lossy().into_owned();
        Ok(Self {
            program,
            args: std::env::args_os().map(text).collect(),
            env: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        })
    }
}

/// A handle on the connection to the fencer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Fencer {
    asks: mpsc::UnboundedSender<Ask>,
}

/// Why the fencer did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum FencerError {
    /// It refused, and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Whether it was done is unknown: attach again and look at what is watched.
    #[error("the connection to the fencer is lost: attach again")]
    Lost,
    /// Whether it was done is unknown.
    #[error("the fencer did not answer in {0:?}")]
    Silent(Duration),
}

struct Ask {
    command: Command,
    answer: Option<oneshot::Sender<Result<Answer, Refusal>>>,
}

impl Fencer {
    /// Connects to the running fencer of this state directory, or starts one. Returns what it already watches.
    ///
    /// Ends the connection of any other keeper to it. A new fencer knows nothing of PostgreSQL, but says which
    /// processes of the data directory live (`Watched::strays`).
    pub async fn attach(
        command: &FencerCommand,
        state_dir: &Path,
        data_dir: &Path,
    ) -> anyhow::Result<(Fencer, mpsc::UnboundedReceiver<FencerEvent>, Watched)> {
        let give_up_at = now() + ATTACH_PATIENCE;
        loop {
            let problem = match UnixStream::connect(socket_path(state_dir)).await {
                Ok(stream) => match greet(stream, data_dir).await {
                    Ok(greeted) => return Ok(greeted),
                    // It ended while it was greeted; a refusal is final.
                    Err(error) if error.is::<FencerError>() => error,
                    Err(error) => return Err(error),
                },
                Err(e)
                    if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
                {
                    match start_fencer(command, state_dir, data_dir).await? {
                        Started::Ready => continue,
                        Started::NotYet(problem) => anyhow::Error::msg(problem),
                    }
                }
                Err(error) => return Err(error).context("connect to the fencer"),
            };
            if now() >= give_up_at {
                return Err(problem).context("attach to the fencer");
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Refuses, from now on, every "serve until" further ahead than `lease`.
    pub fn lease_at_most(&self, lease: Duration) {
        let ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        self.tell(Command::LeaseAtMost { ms });
    }

    /// Has this keeper started again by `command` should it die, or not at all.
    pub fn restart_by(&self, keeper: Option<KeeperCommand>) {
        self.tell(Command::Restart { keeper });
    }

    /// The same for the last time: returns once the fencer has heard it, or does not answer.
    pub async fn let_go(&self) {
        let _ = self.ask(Command::Restart { keeper: None }, ANSWER_PATIENCE).await;
    }

    /// Starts PostgreSQL and returns the postmaster's pid. Refused while any process of the data directory lives.
    pub async fn start(&self, start: StartPostgres) -> Result<u32, FencerError> {
        match self.ask(Command::Start(start), ANSWER_PATIENCE).await? {
            Answer::Started { pid } => Ok(pid),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets PostgreSQL serve until then; `None` means for ever, as a standby may. The last call counts.
    pub fn serve_until(&self, until: Option<Moment>) {
        self.tell(Command::ServeUntil { until });
    }

    /// Sends a signal to the postmaster.
    pub async fn signal(&self, signal: Signal) -> Result<(), FencerError> {
        let signal = signal.as_str().to_string();
        self.ask(Command::Signal { signal }, ANSWER_PATIENCE).await.map(drop)
    }

    /// Ends every process of the data directory, also those that this fencer did not start, and waits until none
    /// is left.
    pub async fn fence(&self) -> Result<Fenced, FencerError> {
        match self.ask(Command::Fence, FENCE_PATIENCE).await? {
            Answer::Fenced(fenced) => Ok(fenced),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the fencer. Refused while PostgreSQL runs.
    pub async fn exit(&self) -> Result<(), FencerError> {
        self.ask(Command::Exit, ANSWER_PATIENCE).await.map(drop)
    }

    /// Sends a command whose refusal is only logged. A lost connection shows as `FencerEvent::Lost`.
    fn tell(&self, command: Command) {
        let _ = self.asks.send(Ask { command, answer: None });
    }

    async fn ask(&self, command: Command, patience: Duration) -> Result<Answer, FencerError> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask { command, answer: Some(answer) };
        self.asks.send(ask).map_err(|_| FencerError::Lost)?;
        match timeout(patience, answered).await {
            Ok(Ok(outcome)) => Ok(outcome?),
            Ok(Err(_)) => Err(FencerError::Lost),
            Err(_) => Err(FencerError::Silent(patience)),
        }
    }
}

fn unexpected(answer: &Answer) -> FencerError {
    FencerError::Refused(Refusal::Unreadable { problem: format!("the answer was {answer:?}") })
}

enum Started {
    Ready,
    /// Another one holds the lock: it is coming up, or on its way out.
    NotYet(String),
}

async fn start_fencer(
    command: &FencerCommand,
    state_dir: &Path,
    data_dir: &Path,
) -> anyhow::Result<Started> {
    let mut starting = tokio::process::Command::new(&command.program);
    // Its environment shows in /proc for as long as PostgreSQL runs, and may hold passwords.
    starting.arg0("pgdeputy").args(&command.args).env_clear();
    starting.arg("--state-dir").arg(state_dir).arg("--data-dir").arg(data_dir);
    starting.stdin(Stdio::null()).stdout(Stdio::piped());
    // Not killed when dropped: tokio reaps it should it end before the keeper does.
    let mut child =
        starting.spawn().with_context(|| format!("start fencer {}", command.program.display()))?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("take the fencer's output")?;
    timeout(ANSWER_PATIENCE, BufReader::new(stdout).read_line(&mut line))
        .await
        .context("wait for the fencer to start")?
        .context("read the fencer's output")?;
    if line.trim_end() == READY {
        return Ok(Started::Ready);
    }
    let status =
        timeout(ANSWER_PATIENCE, child.wait()).await.context("wait for the fencer to end")??;
    match status.code() {
        Some(super::server::LOCKED) => Ok(Started::NotYet(line.trim_end().to_string())),
        _ => bail!("start fencer: {} ({status})", line.trim_end()),
    }
}

/// Says hello on a new connection and hands it to a task of its own.
async fn greet(
    stream: UnixStream,
    data_dir: &Path,
) -> anyhow::Result<(Fencer, mpsc::UnboundedReceiver<FencerEvent>, Watched)> {
    hand_over_output(&stream).await.context("hand the log over to the fencer")?;
    let (asks, asked) = mpsc::unbounded_channel();
    let (events, seen) = mpsc::unbounded_channel();
    tokio::spawn(converse(stream, asked, events));
    let fencer = Fencer { asks };
    let watched = match fencer.ask(Command::Hello { protocol: PROTOCOL }, ANSWER_PATIENCE).await {
        Ok(Answer::Watched(watched)) => watched,
        Ok(other) => return Err(unexpected(&other).into()),
        Err(FencerError::Refused(refusal)) => bail!("greet the fencer: {refusal}"),
        Err(error) => return Err(error.into()),
    };
    let asked_for = std::path::absolute(data_dir).context("find the data directory")?;
    if watched.data_dir != asked_for {
        bail!(
            "the fencer of this state directory watches {}, not {}: each data directory needs a --state-dir of its own",
            watched.data_dir.display(),
            asked_for.display()
        );
    }
    Ok((fencer, seen, watched))
}

/// Sends this process's standard error along with a blank, which counts as the beginning of the first line: a keeper
/// that the fencer starts again goes on writing there.
async fn hand_over_output(stream: &UnixStream) -> std::io::Result<()> {
    let descriptors = [nix::libc::STDERR_FILENO];
    let with = [ControlMessage::ScmRights(&descriptors)];
    let blank = [IoSlice::new(b" ")];
    loop {
        stream.writable().await?;
        let send = || {
            let flags = MsgFlags::MSG_NOSIGNAL;
            Ok(sendmsg::<UnixAddr>(stream.as_raw_fd(), &blank, &with, flags, None)?)
        };
        match stream.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            sent => return sent.map(drop),
        }
    }
}

/// Passes commands and answers on until either side is gone. Dropping `waiting` tells those who still wait.
async fn converse(
    stream: UnixStream,
    mut asked: mpsc::UnboundedReceiver<Ask>,
    events: mpsc::UnboundedSender<FencerEvent>,
) {
    let (reader, mut writer): (OwnedReadHalf, OwnedWriteHalf) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut waiting = BTreeMap::new();
    let mut id = 0;
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some(Ask { command, answer }) = ask else { return };
                id += 1;
                waiting.insert(id, answer);
                if writer.write_all(&encode(&Request { id, command })).await.is_err() {
                    break;
                }
            }
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { break };
                hear(&line, &mut waiting, &events);
            }
        }
    }
    let _ = events.send(FencerEvent::Lost);
}

fn hear(
    line: &str,
    waiting: &mut BTreeMap<u64, Option<oneshot::Sender<Result<Answer, Refusal>>>>,
    events: &mpsc::UnboundedSender<FencerEvent>,
) {
    match serde_json::from_str(line) {
        Ok(Message::Event(event)) => {
            let _ = events.send(event);
        }
        Ok(Message::Answer { id, outcome }) => match (waiting.remove(&id).flatten(), outcome) {
            (Some(answer), outcome) => {
                let _ = answer.send(outcome);
            }
            (None, Ok(_)) => {}
            // Expected around each end of PostgreSQL: a renewal crosses the event that tells of it.
            (None, Err(Refusal::NotRunning)) => {}
            (None, Err(refusal)) => tracing::warn!(%refusal, "fencer refused"),
        },
        Err(problem) => tracing::warn!(%problem, line, "fencer said something unreadable"),
    }
}
