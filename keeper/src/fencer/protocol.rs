//! What keeper and fencer say to each other: one JSON document per line over the fencer's socket.
//!
//! `PROTOCOL` rises with every change that the other side could misread. Old fencers meet new keepers after each
//! upgrade, because a new fencer comes only with PostgreSQL's next start, so `Hello` keeps its form for ever.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proto::{Moment, WallTime};
use serde::{Deserialize, Serialize};

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;

/// The longest time ahead for which a fencer ever lets PostgreSQL serve: the longest lease that a spec may ask for.
pub const LONGEST_LEASE: Duration = Duration::from_secs(60);

/// What a keeper sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Repeated in the answer.
    pub id: u64,
    pub command: Command,
}

/// What a keeper asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Command {
    /// Must come first: makes this connection the keeper's and ends the one before.
    Hello {
        protocol: u32,
    },
    /// "Serve until" is refused from now on if it lies further ahead than this.
    LeaseAtMost {
        ms: u64,
    },
    Start(StartPostgres),
    /// `None`: a standby, which needs no right.
    ServeUntil {
        #[serde(with = "boottime_ns")]
        until: Option<Moment>,
    },
    /// A signal for the postmaster, by its name.
    Signal {
        signal: String,
    },
    Fence,
    /// How to start this keeper again should it die; `None`: not at all. Its output goes to the descriptor that came
    /// with the connection's first byte.
    Restart {
        keeper: Option<KeeperCommand>,
    },
    /// Ends the fencer, if no PostgreSQL runs.
    Exit,
}

/// How to start PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartPostgres {
    /// The full path of `postgres`.
    pub program: PathBuf,
    pub args: Vec<String>,
    /// All of its environment.
    pub env: BTreeMap<String, String>,
    /// Gets its standard output and error appended.
    pub log_file: PathBuf,
    /// Until when it may serve; `None` for a standby, which needs no right.
    #[serde(with = "boottime_ns")]
    pub deadline: Option<Moment>,
}

/// How a keeper was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperCommand {
    /// The full path of the program.
    pub program: PathBuf,
    /// With the name that it was called by.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: BTreeMap<String, String>,
    pub directory: PathBuf,
}

/// What a fencer sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    Answer { id: u64, outcome: Result<Answer, Refusal> },
    Event(FencerEvent),
}

/// The answer to a command that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Watched(Watched),
    Started { pid: u32 },
    Fenced(Fenced),
    Done,
}

/// What the fencer had in its care when a keeper connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    pub protocol: u32,
    pub fencer_pid: u32,
    pub data_dir: PathBuf,
    pub postmaster: Option<Postmaster>,
    #[serde(with = "boottime_ns")]
    pub deadline: Option<Moment>,
    /// PostgreSQL is being fenced or has died; `FencerEvent::Gone` will follow.
    pub ending: bool,
    /// Processes of the data directory that this fencer did not start. `Fencer::fence` ends them.
    pub strays: Vec<u32>,
    /// How the postmaster that ran last under this fencer ended; says what a keeper missed while it was away.
    pub last_exit: Option<Exit>,
    /// By which way a fence reaches PostgreSQL; older fencers know one only.
    #[serde(default)]
    pub way: FenceWay,
}

/// How a fence reaches PostgreSQL's processes. What one of the first two misses is killed by the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceWay {
    /// One write to the `cgroup.kill` of its own cgroup (version 2).
    CgroupKill,
    /// Its own cgroup is frozen, killed and thawed (version 1).
    CgroupFreezer,
    /// They are looked for and killed one by one.
    #[default]
    Processes,
}

impl std::fmt::Display for FenceWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CgroupKill => "cgroup.kill",
            Self::CgroupFreezer => "the cgroup freezer",
            Self::Processes => "killing process by process",
        })
    }
}

/// A running postmaster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postmaster {
    pub pid: u32,
    /// The kernel's start time of that process, in clock ticks since boot: with it the pid is unique.
    pub start_ticks: u64,
    pub started: WallTime,
}

/// How a postmaster ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub pid: u32,
    /// For people: `exited with status 1`, `killed by SIGKILL`.
    pub status: String,
    /// Status 0 and not fenced. Whether the data directory was shut down only pg_control says.
    pub clean: bool,
    pub at: WallTime,
}

/// What a fence took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// From the immediate stop until no process was left.
    pub took: Duration,
    /// How many processes the immediate stop did not end, so that they were killed.
    pub killed: usize,
}

/// Why PostgreSQL was fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceReason {
    /// "Serve until T" has passed.
    Deadline,
    /// The keeper asked for it.
    Asked,
    /// The fencer got SIGTERM.
    Terminated,
}

/// What a fencer tells its keeper unasked. Each postmaster's story is `Exited`, `Fenced` if it was, `Gone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FencerEvent {
    /// The postmaster has ended; its children may live on for a moment.
    Exited { pid: u32, status: String, clean: bool, at: WallTime },
    /// The fence is complete.
    Fenced { why: FenceReason, took: Duration },
    /// No process of the data directory lives any more.
    Gone,
    /// The connection ended: the fencer has died, and PostgreSQL with it, or another keeper has taken over.
    Lost,
}

/// Why a command was not done. But for `StillAlive` it changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    #[error(
        "the fencer speaks protocol {speaks}: stop PostgreSQL with the program version that started it"
    )]
    OtherProtocol { speaks: u32 },
    #[error("hello must come first")]
    NoHello,
    #[error("cannot read the command: {problem}")]
    Unreadable { problem: String },
    #[error("PostgreSQL already runs with pid {pid}")]
    AlreadyRuns { pid: u32 },
    #[error("processes of the data directory still live ({}): fence them first", list(.pids))]
    Occupied { pids: Vec<u32> },
    #[error("no PostgreSQL runs")]
    NotRunning,
    #[error("serve until {ahead_ms} ms ahead is further than the lease of {at_most_ms} ms allows")]
    TooFar { ahead_ms: u64, at_most_ms: u64 },
    #[error("the time until which it may serve has passed")]
    Passed,
    #[error("start PostgreSQL: {problem}")]
    NotStarted { problem: String },
    #[error("signal PostgreSQL: {problem}")]
    NotSignalled { problem: String },
    #[error("killed processes do not end, perhaps they wait for a disk ({}); the fencer goes on trying", list(.pids))]
    StillAlive { pids: Vec<u32> },
}

fn list(pids: &[u32]) -> String {
    let shown: Vec<String> = pids.iter().take(8).map(u32::to_string).collect();
    let more = if pids.len() > 8 { ", ..." } else { "" };
    format!("pid {}{more}", shown.join(", "))
}

/// Returns `document` as one line with its end.
pub fn encode(document: &impl Serialize) -> Vec<u8> {
    let mut line =
        serde_json::to_vec(document).expect("the protocol's documents have text keys only");
    line.push(b'\n');
    line
}

/// Moments on the wire: nanoseconds of this machine's CLOCK_BOOTTIME, which both sides read.
mod boottime_ns {
    use std::time::Duration;

    use proto::Moment;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(moment: &Option<Moment>, to: S) -> Result<S::Ok, S::Error> {
        moment.map(|m| u64::try_from(m.boot_time().as_nanos()).unwrap_or(u64::MAX)).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Moment>, D::Error> {
        let ns = Option::<u64>::deserialize(from)?;
        Ok(ns.map(|ns| Moment::since_boot(Duration::from_nanos(ns))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(document: &impl Serialize) -> String {
        String::from_utf8(encode(document)).unwrap()
    }

    #[test]
    fn version_one_stays_as_it_was_released() {
        let until = Some(Moment::since_boot(Duration::from_nanos(1_500_000_001)));
        let hello = Request { id: 1, command: Command::Hello { protocol: 1 } };
        assert_eq!(line(&hello), "{\"id\":1,\"command\":{\"do\":\"hello\",\"protocol\":1}}\n");
        let serve = Request { id: 2, command: Command::ServeUntil { until } };
        assert_eq!(
            line(&serve),
            "{\"id\":2,\"command\":{\"do\":\"serve_until\",\"until\":1500000001}}\n"
        );
        let gone = Message::Event(FencerEvent::Gone);
        assert_eq!(line(&gone), "{\"event\":\"gone\"}\n");
        let refused = Message::Answer { id: 3, outcome: Err(Refusal::NotRunning) };
        assert_eq!(
            line(&refused),
            "{\"answer\":{\"id\":3,\"outcome\":{\"Err\":\"not_running\"}}}\n"
        );
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        let start = StartPostgres {
            program: "/usr/bin/postgres".into(),
            args: vec!["-D".into(), "/with \"quotes\"\n".into()],
            env: BTreeMap::from([("LANG".into(), "C".into())]),
            log_file: "/tmp/log".into(),
            deadline: Some(Moment::since_boot(Duration::from_nanos(u64::MAX))),
        };
        let request = Request { id: 9, command: Command::Start(start) };
        let sent = encode(&request);
        assert_eq!(sent.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<Request>(&sent).unwrap(), request);

        let fenced = Fenced { took: Duration::from_micros(1234), killed: 3 };
        let answer = Message::Answer { id: 9, outcome: Ok(Answer::Fenced(fenced)) };
        assert_eq!(serde_json::from_slice::<Message>(&encode(&answer)).unwrap(), answer);
    }
}
