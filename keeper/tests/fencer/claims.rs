//! What the fencer is relied on for, one claim each.

use std::time::Duration;

use keeper::fencer::{FenceReason, Fencer, FencerError, FencerEvent, Process, Refusal};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use store::clock::now;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::caged::*;
use super::scene::{Claim, Cluster, Scene, command, freeze, number, until};

/// Loose on purpose: the machine may be busy. What it takes is printed.
const BOUND: Duration = Duration::from_secs(3);

const ROUNDS: usize = 3;

macro_rules! claims {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), |cluster| Box::pin($name(cluster)))),*] };
}

pub const ALL: &[Claim] = claims![
    death_of_postgres_is_reported_at_once_and_orphans_do_not_live_on,
    a_clean_stop_is_told_from_a_crash,
    postgres_is_fenced_once_its_time_has_passed_and_not_while_it_is_renewed,
    a_busy_postgres_is_fenced,
    a_postgres_with_a_stopped_backend_is_fenced,
    a_postgres_with_a_stopped_checkpointer_is_fenced,
    a_stopped_postmaster_is_fenced,
    a_second_keeper_finds_the_same_postgres_and_the_same_deadline,
    the_deadline_holds_without_a_keeper,
    the_deadline_holds_while_every_processor_is_busy,
    a_deadline_further_than_the_lease_is_refused,
    postgres_stops_when_the_fencer_is_killed,
    what_a_killed_fencer_left_is_found_and_fenced_by_the_next,
    a_dead_postgres_that_nobody_reaps_delays_no_start,
    sigterm_fences_and_ends_the_fencer_and_other_signals_do_not,
    an_administrators_shell_in_the_data_directory_is_left_alone,
    what_cannot_be_done_is_refused_and_changes_nothing,
    only_a_keeper_that_speaks_the_protocol_takes_over,
    a_fence_by_cgroup_reaches_stopped_processes_and_leaves_nothing,
    a_fencer_that_may_make_no_cgroup_says_so_and_fences_all_the_same,
];

async fn death_of_postgres_is_reported_at_once_and_orphans_do_not_live_on(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let (mut exits, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let pid = scene.serving(None).await;
        scene.busy_backend().await;
        let killed = now();
        Process::with_pid(pid).unwrap().signal(Signal::SIGKILL).unwrap();
        let first = scene.event().await;
        exits.push(now().since(killed));
        let FencerEvent::Exited { pid: exited, status, clean: false, .. } = first else {
            panic!("{first:?}")
        };
        assert_eq!((exited, status.as_str()), (pid, "killed by SIGKILL"));
        assert_eq!(scene.event().await, FencerEvent::Gone);
        ends.push(now().since(killed));
        assert_eq!(cluster.processes(), []);
    }
    within("exit reported", exits, Duration::from_millis(500));
    within("gone reported", ends, Duration::from_secs(1));
}

async fn a_clean_stop_is_told_from_a_crash(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    scene.serving(None).await;
    scene.fencer.signal(Signal::SIGINT).await.unwrap();
    let events = scene.end().await;
    assert!(
        matches!(&events[..], [FencerEvent::Exited { clean: true, .. }, FencerEvent::Gone]),
        "{events:?}"
    );
    // A fence ends with status 0 too, and is no clean end.
    scene.serving(None).await;
    scene.fencer.fence().await.unwrap();
    let events = scene.end().await;
    assert!(
        matches!(&events[..], [FencerEvent::Exited { clean: false, .. }, _, FencerEvent::Gone]),
        "{events:?}"
    );
}

async fn postgres_is_fenced_once_its_time_has_passed_and_not_while_it_is_renewed(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let lease = Duration::from_secs(2);
    scene.serving(Some(now() + lease)).await;
    let (mut deadline, renewed_until) = (now() + lease, now() + 2 * lease);
    while now() < renewed_until {
        deadline = now() + lease;
        scene.fencer.serve_until(Some(deadline));
        tokio::time::sleep(lease / 5).await;
        assert!(scene.events.is_empty(), "{:?}", scene.event().await);
    }
    let events = scene.end().await;
    let late = now().since(deadline);
    assert!(now() >= deadline, "fenced before its time");
    let fenced =
        |e: &FencerEvent| matches!(e, FencerEvent::Fenced { why: FenceReason::Deadline, .. });
    assert!(events.iter().any(fenced), "{events:?}");
    within("gone after the deadline", vec![late], BOUND);
    assert_eq!(cluster.processes(), []);
}

async fn a_busy_postgres_is_fenced(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        scene.serving(None).await;
        for _ in 0..4 {
            scene.busy_backend().await;
        }
        took.push(fence(&mut scene).await.0);
    }
    within("fence, busy", took, BOUND);
}

async fn a_postgres_with_a_stopped_backend_is_fenced(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        scene.serving(None).await;
        freeze(scene.busy_backend().await).await;
        let (time, killed) = fence(&mut scene).await;
        assert!(killed >= 2, "the stopped backend and its postmaster had to be killed");
        took.push(time);
    }
    within("fence, backend stopped", took, BOUND);
}

async fn a_postgres_with_a_stopped_checkpointer_is_fenced(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        scene.serving(None).await;
        let session = scene.session().await;
        let checkpointer = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
        freeze(number(&session, checkpointer).await).await;
        took.push(fence(&mut scene).await.0);
    }
    within("fence, checkpointer stopped", took, BOUND);
}

async fn a_stopped_postmaster_is_fenced(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let pid = scene.serving(None).await;
        scene.busy_backend().await;
        freeze(pid).await;
        took.push(fence(&mut scene).await.0);
    }
    within("fence, postmaster stopped", took, BOUND);
}

async fn a_second_keeper_finds_the_same_postgres_and_the_same_deadline(cluster: Cluster) {
    let mut first = Scene::fresh(&cluster).await;
    let deadline = now() + Duration::from_secs(50);
    let pid = first.serving(Some(deadline)).await;
    let mut second = Scene::attached(&cluster, &first.state_dir).await;
    assert_eq!(first.event().await, FencerEvent::Lost);
    assert!(matches!(first.fencer.fence().await, Err(FencerError::Lost)));
    let found = second.watched.postmaster.clone().unwrap();
    assert_eq!((found.pid, second.watched.deadline), (pid, Some(deadline)));
    assert_eq!(found.start_ticks, Process::with_pid(pid).unwrap().start_ticks);
    assert_eq!(second.watched.fencer_pid, first.watched.fencer_pid);
    // What happens while no keeper is there is told to the next one.
    fence(&mut second).await;
    drop(second);
    let third = Scene::attached(&cluster, &first.state_dir).await;
    assert_eq!(third.watched.postmaster, None);
    assert_eq!(third.watched.last_exit.unwrap().pid, pid);
}

async fn the_deadline_holds_without_a_keeper(cluster: Cluster) {
    let scene = Scene::fresh(&cluster).await;
    let deadline = now() + Duration::from_secs(2);
    scene.serving(Some(deadline)).await;
    drop((scene.fencer, scene.events));
    until("PostgreSQL is fenced", || cluster.processes().is_empty()).await;
    assert!(now() >= deadline);
    within("gone after the deadline, no keeper", vec![now().since(deadline)], BOUND);
}

async fn the_deadline_holds_while_every_processor_is_busy(cluster: Cluster) {
    let scene = Scene::fresh(&cluster).await;
    let deadline = now() + Duration::from_secs(2);
    scene.serving(Some(deadline)).await;
    let mut hogs: Vec<_> = (0..16)
        .map(|_| cluster.command("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
        .collect();
    drop((scene.fencer, scene.events));
    let end = now() + BOUND + Duration::from_secs(2);
    while !cluster.processes().is_empty() && now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (late, left) = (now().since(deadline), cluster.processes());
    for hog in &mut hogs {
        hog.kill().unwrap();
        hog.wait().unwrap();
    }
    assert_eq!(left, []);
    within("gone after the deadline, 16 hogs", vec![late], BOUND);
}

async fn a_deadline_further_than_the_lease_is_refused(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let too_far = now() + Duration::from_secs(70);
    let refused = scene.fencer.start(cluster.start(Some(too_far))).await;
    assert!(matches!(refused, Err(FencerError::Refused(Refusal::TooFar { .. }))), "{refused:?}");
    scene.serving(None).await;
    scene.fencer.serve_until(Some(now() + Duration::from_secs(1)));
    scene.fencer.serve_until(Some(too_far));
    scene.fencer.lease_at_most(Duration::from_secs(4));
    scene.fencer.serve_until(Some(now() + Duration::from_secs(20)));
    let asked = now();
    scene.end().await;
    assert!(now().since(asked) < Duration::from_secs(10), "a refused deadline was taken");
    let refused = "further than the lease of 4000 ms allows";
    until("the refusal is logged", || scene.log().contains(refused)).await;
}

async fn postgres_stops_when_the_fencer_is_killed(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    scene.serving(None).await;
    scene.busy_backend().await;
    let killed = now();
    scene.fencer_process().signal(Signal::SIGKILL).unwrap();
    assert_eq!(scene.event().await, FencerEvent::Lost);
    until("PostgreSQL has stopped", || cluster.processes().is_empty()).await;
    within("gone after the fencer's death", vec![now().since(killed)], BOUND);
}

async fn what_a_killed_fencer_left_is_found_and_fenced_by_the_next(cluster: Cluster) {
    let scene = Scene::fresh(&cluster).await;
    let pid = scene.serving(None).await;
    let backend = scene.busy_backend().await;
    freeze(pid).await;
    let fencer = scene.fencer_process();
    fencer.signal(Signal::SIGKILL).unwrap();
    until("the fencer is dead", || Process::with_pid(fencer.pid).is_none()).await;
    let mut next = Scene::attached(&cluster, &scene.state_dir).await;
    let strays = &next.watched.strays;
    assert!(strays.contains(&pid) && strays.contains(&backend), "{strays:?}");
    let refused = next.fencer.start(cluster.start(None)).await;
    assert!(matches!(refused, Err(FencerError::Refused(Refusal::Occupied { .. }))), "{refused:?}");
    fence(&mut next).await;
    next.serving(None).await;
}

/// As in a container whose PID 1 reaps late or never: this test adopts what the killed fencer leaves, and does not look.
async fn a_dead_postgres_that_nobody_reaps_delays_no_start(cluster: Cluster) {
    prctl::set_child_subreaper(true).unwrap();
    let scene = Scene::fresh(&cluster).await;
    let pid = scene.serving(None).await;
    // Stopped, it does not end in order, and its lock file stays.
    freeze(pid).await;
    let fencer = scene.fencer_process();
    fencer.signal(Signal::SIGKILL).unwrap();
    until("the fencer is dead", || Process::with_pid(fencer.pid).is_none()).await;
    Process::with_pid(pid).unwrap().signal(Signal::SIGKILL).unwrap();
    until("nothing of it lives", || cluster.processes().is_empty()).await;
    let is_there = || std::path::Path::new(&format!("/proc/{pid}")).exists();
    let lock = std::fs::read_to_string(cluster.data_dir.join("postmaster.pid")).unwrap();
    assert!(is_there() && lock.starts_with(&pid.to_string()), "{lock}");
    let next = Scene::attached(&cluster, &scene.state_dir).await;
    assert_eq!(next.watched.strays, Vec::<u32>::new(), "a zombie is nobody");
    let begun = now();
    next.serving(None).await;
    assert!(is_there(), "somebody has reaped it: this shows nothing");
    within("serves beside a zombie", vec![now().since(begun)], BOUND);
    prctl::set_child_subreaper(false).unwrap();
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(ended) if ended.pid().is_some()) {}
}

async fn sigterm_fences_and_ends_the_fencer_and_other_signals_do_not(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let pid = scene.serving(None).await;
    let fencer = scene.fencer_process();
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        fencer.signal(signal).unwrap();
    }
    // Answered after the signals were taken: they were pending before it was asked.
    scene.fencer.signal(Signal::SIGHUP).await.unwrap();
    assert!(Process::with_pid(pid).is_some() && Process::with_pid(fencer.pid).is_some());
    fencer.signal(Signal::SIGTERM).unwrap();
    let events = scene.end().await;
    let fenced =
        |e: &FencerEvent| matches!(e, FencerEvent::Fenced { why: FenceReason::Terminated, .. });
    assert!(events.iter().any(fenced), "{events:?}");
    assert_eq!(scene.event().await, FencerEvent::Lost);
    until("the fencer has ended", || Process::with_pid(fencer.pid).is_none()).await;
    assert!(!keeper::fencer::socket_path(&scene.state_dir).exists());
    assert_eq!(cluster.processes(), []);
}

async fn an_administrators_shell_in_the_data_directory_is_left_alone(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    scene.serving(None).await;
    let mut shell =
        cluster.command("sleep").arg("60").current_dir(&cluster.data_dir).spawn().unwrap();
    let session = scene.session().await;
    freeze(number(&session, "select pg_backend_pid()").await).await;
    fence(&mut scene).await;
    let lives = shell.try_wait().unwrap().is_none();
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert!(lives, "the fence killed a stranger");
}

async fn what_cannot_be_done_is_refused_and_changes_nothing(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    let mut missing = cluster.start(None);
    missing.program = "/nowhere/postgres".into();
    let refused = scene.fencer.start(missing).await.unwrap_err().to_string();
    assert!(refused.contains("/nowhere/postgres"), "{refused}");
    let refused = scene.fencer.start(cluster.start(Some(now()))).await;
    assert!(matches!(refused, Err(FencerError::Refused(Refusal::Passed))), "{refused:?}");
    let refused = scene.fencer.signal(Signal::SIGINT).await;
    assert!(matches!(refused, Err(FencerError::Refused(Refusal::NotRunning))), "{refused:?}");
    let nothing = scene.fencer.fence().await.unwrap();
    assert_eq!((nothing.killed, nothing.took), (0, Duration::ZERO));
    assert_eq!(scene.event().await, FencerEvent::Gone, "also said where nothing was to be ended");

    let pid = scene.serving(None).await;
    let refused = scene.fencer.start(cluster.start(None)).await;
    assert!(
        matches!(refused, Err(FencerError::Refused(Refusal::AlreadyRuns { .. }))),
        "{refused:?}"
    );
    assert!(scene.fencer.exit().await.is_err());
    assert!(Process::with_pid(pid).is_some());

    let elsewhere = Fencer::attach(&command(), &scene.state_dir, &cluster.dir.join("other")).await;
    let error = elsewhere.err().unwrap().to_string();
    assert!(error.contains("--state-dir"), "{error}");
    let nowhere = Fencer::attach(&command(), &cluster.dir.join("nowhere"), &cluster.data_dir).await;
    let error = nowhere.err().unwrap().to_string();
    assert!(error.contains("fencer.lock"), "{error}");
}

async fn only_a_keeper_that_speaks_the_protocol_takes_over(cluster: Cluster) {
    let scene = Scene::fresh(&cluster).await;
    let path = keeper::fencer::socket_path(&scene.state_dir);
    for (said, answer) in [
        (
            "{\"id\":7,\"command\":{\"do\":\"hello\",\"protocol\":99}}\n",
            "{\"other_protocol\":{\"speaks\":1}}",
        ),
        ("{\"id\":7,\"command\":{\"do\":\"fence\"}}\n", "no_hello"),
        ("GET / HTTP/1.1\r\n", "unreadable"),
    ] {
        let mut stranger = UnixStream::connect(&path).await.unwrap();
        stranger.write_all(said.as_bytes()).await.unwrap();
        let mut heard = String::new();
        tokio::time::timeout(BOUND, stranger.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert!(heard.contains(answer), "{said} was answered with {heard}");
    }
    scene.fencer.exit().await.unwrap();
    until("the fencer has ended", || Process::with_pid(scene.watched.fencer_pid).is_none()).await;
}

/// Fences and demands that nothing is left; returns what it took and how many had to be killed.
pub async fn fence(scene: &mut Scene) -> (Duration, usize) {
    let asked = now();
    let fenced = scene.fencer.fence().await.unwrap();
    let took = now().since(asked);
    assert_eq!(scene.cluster.processes(), [], "{}", scene.log());
    scene.end().await;
    (took, fenced.killed)
}

/// Prints what was measured and demands that the worst is below `bound`.
fn within(what: &str, mut took: Vec<Duration>, bound: Duration) {
    took.sort();
    let ms: Vec<String> = took.iter().map(|t| format!("{:.1}", t.as_secs_f64() * 1000.0)).collect();
    println!("       {what}: median {} ms of [{}]", ms[ms.len() / 2], ms.join(", "));
    assert!(took.iter().all(|t| *t < bound), "{what}: {took:?}, bound {bound:?}");
}
