//! Without a fault nothing happens: no failover, no demotion, no restart, however busy the machine is.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::io::{Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{Cluster, Lab, Service};
use chaos::verdict::judge;
use proto::MemberName;
use store::clock;
use system_tests::{minutes, number_of, scene_alone};

const BOUND: Duration = Duration::from_secs(120);

/// Keeps processors and the disk busy until it is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn with(hogs: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for _ in 0..hogs {
            let stop = stop.clone();
            threads.push(std::thread::spawn(move || {
                let mut number = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    number =
                        std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005) + 1);
                }
            }));
        }
        let stopped = stop.clone();
        threads.push(std::thread::spawn(move || {
            let mut file = tempfile::tempfile().expect("make a file");
            let block = vec![7_u8; 1 << 20];
            while !stopped.load(Ordering::Relaxed) {
                file.rewind().expect("rewind");
                for _ in 0..64 {
                    file.write_all(&block).expect("write");
                }
                file.sync_all().expect("sync");
            }
        }));
        Self { stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a busy thread ends");
        }
    }
}

/// What must not change: who serves since when, and that no PostgreSQL was started again.
#[derive(Debug, PartialEq)]
struct Order {
    service: Option<(Service, MemberName)>,
    changes: usize,
    /// As the file in each data directory names them.
    postmasters: Vec<String>,
}

impl Order {
    fn of(lab: &Lab, cluster: &Cluster) -> Self {
        let postmaster = |member: &MemberName| {
            let file = lab.layout().data(member).join("postmaster.pid");
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.lines().next().unwrap_or_default().to_owned()
        };
        Self {
            service: cluster.service(),
            changes: cluster.history.len(),
            postmasters: lab.members().iter().map(postmaster).collect(),
        }
    }
}

/// Returns the time for which the machine's processors were busy since it started, and all of their time.
fn processor_time() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap();
    let first = text.lines().next().unwrap().split_whitespace().skip(1);
    let times: Vec<u64> = first.map(|number| number.parse().unwrap()).collect();
    let all = times[..8].iter().sum::<u64>();
    // The fourth and fifth are idle, without and with a disk to wait for.
    (all - times[3] - times[4], all)
}

async fn stays_calm(hogs: usize, time: Duration) {
    let mut scene = scene_alone(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let first = lab.cluster().await.unwrap();
    let before = Order::of(lab, &first);
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let (busy_before, all_before) = processor_time();
    let busy = (hogs > 0).then(|| Busy::with(hogs));
    let begun = clock::now();
    let (mut looks, mut unanswered) = (0, 0);
    while clock::now() < begun + time {
        tokio::time::sleep(Duration::from_secs(1)).await;
        looks += 1;
        // An etcd that is too busy to answer this test is no role change.
        let Ok(cluster) = lab.cluster().await else {
            unanswered += 1;
            continue;
        };
        let passed = clock::now().since(begun);
        assert_eq!(
            Order::of(lab, &cluster),
            before,
            "after {passed:?}: {:?}\n{:#?}",
            cluster.state,
            cluster.history.last()
        );
    }
    let ended = clock::now();
    drop(busy);
    let (busy_after, all_after) = processor_time();
    let last = lab.wait_redundant(BOUND).await.unwrap();
    assert_eq!(Order::of(lab, &last), before);
    let (evidence, told) = watchers.finish(lab, (begun, ended)).await.unwrap();
    let cfgs = |cluster: &Cluster| cluster.state.as_ref().map_or(0, |state| state.last_cfg.0);
    eprintln!(
        "calm for {:?}: {} commits, {} overdue, longest gap {:?}, configurations changed {} times, \
         etcd did not answer {unanswered} of {looks} looks, processors busy for {} % of the time",
        ended.since(begun),
        told.acknowledged.len(),
        told.overdue,
        told.longest_gap(begun, ended),
        cfgs(&last) - cfgs(&first),
        100 * (busy_after - busy_before) / (all_after - all_before).max(1),
    );
    assert_eq!(told.unknown, told.overdue, "no session was cut");
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

#[tokio::test]
async fn with_both_cores_and_the_disk_busy_nothing_is_failed_over() {
    stays_calm(4, Duration::from_secs(30)).await;
}

/// `PGDEPUTY_CALM_MINUTES` says for how long, 60 by default; `PGDEPUTY_CALM_HOGS` how many threads keep the processors
/// busy, 8 by default, and none where the machine is busy anyhow.
#[tokio::test]
#[ignore = "takes an hour: make test-long"]
async fn an_hour_with_both_cores_and_the_disk_busy_gives_no_false_alarm() {
    let hogs = number_of("PGDEPUTY_CALM_HOGS", 8);
    stays_calm(hogs, minutes("PGDEPUTY_CALM_MINUTES", 60.0)).await;
}
