//! Rewinds that are cut at drawn points, by the death of each one who has a part in it. Afterwards the next try ends it,
//! and the member is equal to its primary.
//!
//! `PGDEPUTY_INTERRUPTIONS` says how many, `PGDEPUTY_SEED` which ones; the seed is printed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use keeper::postgres::binaries::PostgresBinaries;
use keeper::postgres::control::{ControlFile, ControlState};
use keeper::postgres::copy::{CopyPhase, CopyProgress};
use keeper::postgres::kept_wal::ForkSegment;
use keeper::postgres::rewind::{Delta, RewindOutcome, finish, rewind_delta, was_finished};
use keeper::postgres::source::Source;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::spec::CrashRecovery;
use proto::{Lsn, Timeline};

use crate::cluster::{Cluster, PASSWORD, binaries, own, processes_with};
use crate::delta::{
    Notes, diverged, fork, joins_equal, rejoin, segments_before, target_of, through_gateway,
};
use crate::relay::Relay;

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The keeper, and with it all that it started, by SIGKILL.
    Keeper,
    /// pg_rewind.
    Rewind,
    /// The gateway: the action is dropped where it stands.
    Gateway,
    /// The source: it crashes and is started again.
    Source,
    /// pg_rewind, at one of the calls by which it changes files.
    Call,
    /// The keeper's action, when pg_rewind has ended and what it wrote is made durable.
    Durable,
    /// The same, when the member's own WAL is settled.
    Settling,
}

/// Draws numbers from a seed (splitmix64).
pub struct Draw(pub u64);

impl Draw {
    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

/// Returns the number in an environment variable.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// How long an uncut rewind is, by what it receives and by the calls that change files.
#[derive(Debug, Clone)]
struct Whole {
    bytes: u64,
    calls: Vec<(&'static str, u64)>,
}

impl Whole {
    /// Draws one of the calls: its name, and its number among those of that name.
    fn draw_call(&self, draw: &mut Draw) -> (&'static str, u64) {
        let mut number = draw.below(self.calls.iter().map(|(_, count)| count).sum());
        for (call, count) in &self.calls {
            if number < *count {
                return (*call, 1 + number);
            }
            number -= count;
        }
        ("none", 1)
    }
}

#[tokio::test]
async fn rewinds_that_are_cut_at_drawn_points_are_taken_up_again_and_end_equal() {
    let seed = number("PGDEPUTY_SEED").unwrap_or(20_261_127);
    let interruptions = number("PGDEPUTY_INTERRUPTIONS").unwrap_or(6);
    let mut draw = Draw(seed);
    let (mut old, mut new) = diverged(5).await;
    let expected = fork(&old, &new);
    old.keep_data();
    let whole = measure(&old, &new, expected).await;
    // Half of them while files are being written.
    let kinds = [
        Cut::Keeper,
        Cut::Call,
        Cut::Rewind,
        Cut::Source,
        Cut::Gateway,
        Cut::Settling,
        Cut::Call,
        Cut::Call,
        Cut::Durable,
        Cut::Call,
        Cut::Call,
    ];
    println!("seed={seed} interruptions={interruptions} {whole:?}");
    let (mut cut, mut finished) = (0, 0);
    for turn in 0..interruptions {
        old.put_back();
        let kind = kinds[usize::try_from(turn).unwrap() % kinds.len()];
        let (byte, call) = (draw.below(whole.bytes), whole.draw_call(&mut draw));
        let crash_recovery = [CrashRecovery::Skip, CrashRecovery::Run][draw.below(2) as usize];
        let at = match kind {
            Cut::Call => format!("{} number {}", call.0, call.1),
            Cut::Keeper | Cut::Rewind | Cut::Gateway | Cut::Source => format!("byte {byte}"),
            Cut::Durable | Cut::Settling => "its end".to_owned(),
        };
        println!("interruption {turn}: {kind:?} at {at}, crash recovery {crash_recovery:?}");
        let notes = Notes { crash_recovery, ..Notes::default() };
        let was_cut = match kind {
            Cut::Call => at_call(&old, &new, (expected, call), &notes).await,
            Cut::Durable | Cut::Settling => {
                after_its_end(&old, &new, (kind, expected), &notes).await
            }
            kind => at_byte(&old, &mut new, (kind, expected, byte), &notes).await,
        };
        cut += u64::from(was_cut);
        // Crash recovery of half-rewound data would replay one server's log over the other's pages.
        let control = ControlFile::read(&old.data).unwrap();
        let is_begun = notes.fork.lock().unwrap().is_some();
        let may_recover = !control.is_clean() && control.state != ControlState::InArchiveRecovery;
        assert!(!(is_begun && may_recover), "{control:?}");
        let had_finished = take_up_again(&old, &new, expected, &notes).await;
        assert!(had_finished || !matches!(kind, Cut::Durable | Cut::Settling), "{kind:?}");
        finished += u64::from(had_finished);
        let segment_of_fork = fork_segment(expected);
        let (ours, theirs) =
            (segments_before(&old, &segment_of_fork), segments_before(&new, &segment_of_fork));
        let both: Vec<_> = ours.keys().filter(|name| theirs.contains_key(*name)).collect();
        assert!(both.len() > 3 && both.iter().all(|name| ours[*name] == theirs[*name]));
        joins_equal(&mut old, &new).await;
    }
    println!(
        "interrupted: cut={cut} of {interruptions}, of which had_finished={finished}, all equal"
    );
    assert!(cut * 10 >= interruptions * 8, "the drawn points lie beyond the end");
}

fn fork_segment((common, lsn): (Timeline, Lsn)) -> ForkSegment {
    let segment_size = 1 << 20;
    ForkSegment { common, number: lsn.0 / u64::from(segment_size), segment_size }
}

/// Rewinds once without a cut, and counts.
async fn measure(old: &Cluster, new: &Cluster, expected: (Timeline, Lsn)) -> Whole {
    let relay = Relay::before(&new.source(), u64::MAX);
    let notes = Notes::default();
    through_gateway(
        rewind_by(old, &relay.source(&new.source()), (expected, &binaries()), &notes).await,
    );
    let bytes = relay.sent();
    old.put_back();
    let programs = traced(old.root(), None);
    through_gateway(rewind_by(old, &new.source(), (expected, &programs), &notes).await);
    let trace = std::fs::read_to_string(old.root().join("calls")).unwrap();
    let count = |call| {
        let is_one = |line: &&str| line.starts_with(&format!("{call}("));
        (call, trace.lines().filter(is_one).count() as u64)
    };
    Whole { bytes, calls: CHANGES.map(count).into() }
}

async fn rewind_by(
    old: &Cluster,
    source: &Source,
    (expected, programs): ((Timeline, Lsn), &PostgresBinaries),
    notes: &Notes,
) -> RewindOutcome {
    let on_fork = |fork: ForkSegment| {
        *notes.fork.lock().unwrap() = Some(fork);
        Ok(())
    };
    let delta = Delta {
        password: PASSWORD,
        place: old.root(),
        expected,
        on_fork: &on_fork,
        on_diverged: &|_, _| Ok(()),
    };
    rewind_delta(programs, &target_of(old, source, notes.crash_recovery), &delta, |_| {}).await
}

/// Cuts when the source has sent so many bytes. Returns whether it came to that.
async fn at_byte(
    old: &Cluster,
    new: &mut Cluster,
    (kind, expected, byte): (Cut, (Timeline, Lsn), u64),
    notes: &Notes,
) -> bool {
    let relay = Relay::before(&new.source(), byte);
    let source = relay.source(&new.source());
    let data = old.data.to_str().unwrap().to_owned();
    if kind == Cut::Keeper {
        let mut keeper = keeper_process(old, &source, expected, notes.crash_recovery);
        let mut watch = tokio::time::interval(std::time::Duration::from_millis(5));
        let was_reached = loop {
            tokio::select! {
                () = relay.reached() => break true,
                _ = watch.tick() => if keeper.try_wait().unwrap().is_some() { break false },
            }
        };
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        let pid = keeper.id().to_string();
        old.eventually("nothing of a killed keeper lives", |_| {
            processes_with(&data).is_empty() && processes_with(&pid).is_empty()
        })
        .await;
        return was_reached;
    }
    let programs = binaries();
    let rewinding = rewind_by(old, &source, (expected, &programs), notes);
    tokio::pin!(rewinding);
    tokio::select! {
        outcome = &mut rewinding => {
            assert!(matches!(outcome, RewindOutcome::Rewound(_)), "{outcome:?}");
            return false;
        }
        () = relay.reached() => {}
    }
    match kind {
        Cut::Rewind => {
            for pid in processes_with(&data) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            fails(rewinding.await);
        }
        Cut::Source => {
            new.crash();
            drop(relay);
            fails(rewinding.await);
            new.start().await;
        }
        Cut::Gateway | Cut::Keeper | Cut::Call | Cut::Durable | Cut::Settling => {}
    }
    true
}

fn fails(outcome: RewindOutcome) {
    assert!(matches!(outcome, RewindOutcome::Failed(_)), "{outcome:?}");
}

/// Cuts at one of the calls of pg_rewind that change files. Returns whether it came to that.
async fn at_call(
    old: &Cluster,
    new: &Cluster,
    (expected, call): ((Timeline, Lsn), (&str, u64)),
    notes: &Notes,
) -> bool {
    let programs = traced(old.root(), Some(call));
    match rewind_by(old, &new.source(), (expected, &programs), notes).await {
        RewindOutcome::Failed(_) => true,
        RewindOutcome::Rewound(_) => false,
        RewindOutcome::NotRequired => panic!("it saw no divergence"),
    }
}

/// Cuts between the end of pg_rewind and that of the rewind. It always comes to that.
async fn after_its_end(
    old: &Cluster,
    new: &Cluster,
    (kind, expected): (Cut, (Timeline, Lsn)),
    notes: &Notes,
) -> bool {
    let on_fork = |fork: ForkSegment| {
        *notes.fork.lock().unwrap() = Some(fork);
        Ok(())
    };
    let on_diverged = |_: &Path, _: &str| match kind {
        Cut::Settling => Err(std::io::Error::other("cut")),
        _ => Ok(()),
    };
    let delta = Delta {
        password: PASSWORD,
        place: old.root(),
        expected,
        on_fork: &on_fork,
        on_diverged: &on_diverged,
    };
    // pg_rewind writes the control file last: by then it has nothing left to do.
    let newest = Timeline(expected.0.0 + 1);
    let has_ended = || {
        let control = ControlFile::read(&old.data).unwrap();
        control.state == ControlState::InArchiveRecovery && control.min_recovery_timeline == newest
    };
    let ended = tokio::sync::Notify::new();
    let progress = |told: CopyProgress| {
        if kind == Cut::Durable && told.phase == CopyPhase::Syncing && has_ended() {
            ended.notify_one();
        }
    };
    let (source, programs) = (new.source(), binaries());
    let target = target_of(old, &source, notes.crash_recovery);
    tokio::select! {
        () = ended.notified() => {}
        outcome = rewind_delta(&programs, &target, &delta, progress) => fails(outcome),
    }
    true
}

/// What a keeper does that finds a rewind cut. Returns whether pg_rewind had ended by then.
async fn take_up_again(
    old: &Cluster,
    new: &Cluster,
    expected: (Timeline, Lsn),
    notes: &Notes,
) -> bool {
    let newest = Timeline(expected.0.0 + 1);
    if was_finished(&old.data, newest).unwrap() {
        let delta = Delta {
            password: PASSWORD,
            place: old.root(),
            expected,
            on_fork: &|_| Ok(()),
            on_diverged: &|_, _| Ok(()),
        };
        finish(&old.data, &fork_segment(expected), &delta).unwrap();
        return true;
    }
    through_gateway(rejoin(old, new, expected, notes, |_| {}).await);
    false
}

/// The calls by which pg_rewind changes files.
const CHANGES: [&str; 6] = ["pwrite64", "write", "ftruncate", "unlink", "rmdir", "mkdir"];

/// Returns PostgreSQL's programs with a pg_rewind that strace counts the calls of, and kills at the one given.
fn traced(root: &Path, kill_at: Option<(&str, u64)>) -> PostgresBinaries {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    found.expect("strace is missing: run make deps");
    let dir =
        root.join(kill_at.map_or("counting".to_owned(), |(call, n)| format!("killing-{call}-{n}")));
    if !dir.exists() {
        programs_in(&dir);
        let calls = CHANGES.join(",");
        let inject = kill_at.map_or(String::new(), |(call, number)| {
            format!("-e inject={call}:signal=SIGKILL:when={number}")
        });
        let trace =
            format!("strace -qq -o {} -e trace={calls} {inject}", root.join("calls").display());
        wrap(&dir.join("pg_rewind"), &trace, &binaries().pg_rewind());
    }
    let programs = PostgresBinaries::find(Some(&dir)).unwrap();
    match binaries().user() {
        Some(user) => programs.run_as(user),
        None => programs,
    }
}

/// Makes `dir` with PostgreSQL's programs in it, each of which can be replaced.
pub fn programs_in(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for program in std::fs::read_dir(binaries().dir()).unwrap().map(|entry| entry.unwrap()) {
        std::os::unix::fs::symlink(program.path(), dir.join(program.file_name())).unwrap();
    }
    // A link to the server would lead to the directory of the real ones.
    wrap(&dir.join("postgres"), "", &binaries().postgres());
}

/// Puts a script in the place of a program, which runs it by another one.
pub fn wrap(script: &Path, by: &str, program: &Path) {
    let text = format!("#!/bin/sh\nexec {by} {} \"$@\"\n", program.display());
    put_in_place(script, text.as_bytes());
}

/// Puts a program of these bytes in the place of the one at `path`.
pub fn put_in_place(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    own(path);
}

/// Starts `as_a_keeper` as a process of its own, which can be killed as one.
fn keeper_process(
    old: &Cluster,
    source: &Source,
    fork: (Timeline, Lsn),
    crash_recovery: CrashRecovery,
) -> std::process::Child {
    keeper_by(&[], old, source, (fork, crash_recovery))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Returns the command that runs `as_a_keeper`, by another program if one is given. It prints how the files came.
pub fn keeper_by(
    by: &[&str],
    old: &Cluster,
    source: &Source,
    ((timeline, lsn), crash_recovery): ((Timeline, Lsn), CrashRecovery),
) -> Command {
    let skip = if crash_recovery == CrashRecovery::Skip { "skip" } else { "run" };
    let this = std::env::current_exe().unwrap();
    let mut words = by.iter().copied().chain([this.to_str().unwrap()]);
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .args(["--ignored", "--exact", "--nocapture", "interrupted::as_a_keeper"])
        .env("PGDEPUTY_CUT_DATA", &old.data)
        .env("PGDEPUTY_CUT_SOURCE", &source.host)
        .env("PGDEPUTY_CUT_FORK", format!("{timeline} {lsn} {skip}"));
    command
}

/// The part of the killed keeper, in its own process.
#[tokio::test]
#[ignore = "not a test: what the one above starts and kills"]
async fn as_a_keeper() {
    let Ok(data) = std::env::var("PGDEPUTY_CUT_DATA") else { return };
    let fork = std::env::var("PGDEPUTY_CUT_FORK").unwrap();
    let words: Vec<&str> = fork.split(' ').collect();
    let expected = (Timeline(words[0].parse().unwrap()), words[1].parse::<Lsn>().unwrap());
    let crash_recovery = if words[2] == "skip" { CrashRecovery::Skip } else { CrashRecovery::Run };
    let source = Source {
        host: std::env::var("PGDEPUTY_CUT_SOURCE").unwrap(),
        port: 5432,
        user: crate::cluster::SUPERUSER.to_owned(),
        // Read only without the gateway, which logs in by itself.
        passfile: Path::new(&data).with_file_name("pass"),
        application_name: "x.e1.joining".to_owned(),
        tls: None,
    };
    let target = keeper::postgres::rewind::Target {
        data_dir: Path::new(&data),
        config_file: None,
        source: &source,
        crash_recovery,
        end: None,
    };
    let delta = Delta {
        password: PASSWORD,
        place: Path::new(&data).parent().unwrap(),
        expected,
        on_fork: &|_| Ok(()),
        on_diverged: &|_, _| Ok(()),
    };
    let outcome = rewind_delta(&binaries(), &target, &delta, |_| {}).await;
    let RewindOutcome::Rewound(rewound) = outcome else { panic!("{outcome:?}") };
    println!("{:?}", rewound.route);
}
