//! Where the gateway cannot hide anything from pg_rewind, because it is one that asks otherwise or the file system has no
//! hard links: it copies all WAL as it always has, and that is said.

use std::fs;
use std::path::Path;
use std::process::Command;

use keeper::postgres::binaries::PostgresBinaries;
use keeper::postgres::rewind::{Delta, RewindOutcome, Route, rewind_delta};
use proto::spec::CrashRecovery;

use crate::cluster::{PASSWORD, binaries, own};
use crate::delta::{
    Notes, diverged, fork, joins_equal, rejoin, segments_before, target_of, through_gateway,
};
use crate::interrupted::{keeper_by, programs_in, put_in_place, wrap};

/// How every known release begins the query that lists the source's files.
const ASKS: &[u8] = b"WITH RECURSIVE files (path";

/// The same to PostgreSQL, and as long.
const ASKS_OTHERWISE: &[u8] = b"WITH  RECURSIVE files(path";

/// PostgreSQL's programs with a pg_rewind that asks otherwise.
fn another_release(root: &Path) -> PostgresBinaries {
    let dir = root.join("another-release");
    programs_in(&dir);
    let mut program = fs::read(binaries().pg_rewind()).unwrap();
    let at = program.windows(ASKS.len()).position(|bytes| bytes == ASKS).expect("it asks so");
    program[at..at + ASKS.len()].copy_from_slice(ASKS_OTHERWISE);
    // Some builds look for their libraries beside themselves.
    let listed = Command::new("ldd").arg(binaries().pg_rewind()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libpq =
        listed.lines().find_map(|line| Some(line.split_once("=> ")?.1.split_once("/libpq")?.0));
    let changed = dir.join("changed");
    fs::write(&changed, "").unwrap();
    put_in_place(&changed, &program);
    let libraries = format!("env LD_LIBRARY_PATH={}", libpq.expect("it is linked with libpq"));
    wrap(&dir.join("pg_rewind"), &libraries, &changed);
    let programs = PostgresBinaries::find(Some(&dir)).unwrap();
    match binaries().user() {
        Some(user) => programs.run_as(user),
        None => programs,
    }
}

#[tokio::test]
async fn a_pg_rewind_that_asks_in_another_way_than_is_known_copies_all_and_ends_equal() {
    let (mut old, new) = diverged(20).await;
    let programs = another_release(old.root());
    let delta = Delta {
        password: PASSWORD,
        place: old.root(),
        expected: fork(&old, &new),
        on_fork: &|_| panic!("nothing was hidden, so nothing needs a second name"),
        on_diverged: &|_, _| panic!("the source's files took its place"),
    };
    let source = new.source();
    let target = target_of(&old, &source, CrashRecovery::Run);
    let outcome = rewind_delta(&programs, &target, &delta, |_| {}).await;
    let RewindOutcome::Rewound(rewound) = outcome else { panic!("{outcome:?}") };
    let Route::Stock(why) = rewound.route else { panic!("{:?}", rewound.route) };
    assert!(why.contains("in another way than is known"), "{why}");
    joins_equal(&mut old, &new).await;
}

/// What a file system without hard links answers.
const NO_LINKS: [&str; 6] = [
    "strace",
    "-fqq",
    "-o/dev/null",
    "-etrace=link,linkat",
    "-einject=link,linkat:error=EPERM",
    "--",
];

#[tokio::test]
async fn without_hard_links_all_is_copied_and_it_ends_equal_and_wal_on_a_disk_of_its_own_has_them()
{
    let (mut old, new) = diverged(5).await;
    let expected = fork(&old, &new);
    old.keep_data();
    let kept = (expected, CrashRecovery::Skip);
    let ran = keeper_by(&NO_LINKS, &old, &new.source(), kept).output().expect("run make deps");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    let why = "link this member's WAL under second names: Operation not permitted";
    assert!(said.contains("Stock(") && said.contains(why), "{said}");
    joins_equal(&mut old, &new).await;

    // The names of a segment lie beside each other, wherever that is.
    old.put_back();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    own(elsewhere.path());
    let wal = elsewhere.path().join("wal");
    let moved = Command::new("cp").arg("-a").arg(old.pg_wal()).arg(&wal).status().unwrap();
    assert!(moved.success());
    fs::rename(old.pg_wal(), old.root().join("wal-before")).unwrap();
    std::os::unix::fs::symlink(&wal, old.pg_wal()).unwrap();
    let notes = Notes::default();
    let (_, traffic) = through_gateway(rejoin(&old, &new, expected, &notes, |_| {}).await);
    let fork = notes.fork.lock().unwrap().unwrap();
    assert!(traffic.before(&fork).is_empty(), "{:?}", traffic.before(&fork));
    assert!(segments_before(&old, &fork).len() > 3 && old.pg_wal().is_symlink());
    joins_equal(&mut old, &new).await;
}
