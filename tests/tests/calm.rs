//! Without a fault nothing happens: no failover, no demotion, no restart, however busy the machine is.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::io::{Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chaos::lab::Cluster;
use system_tests::scene;

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

/// What must not change.
fn order(cluster: &Cluster) -> (proto::Epoch, Option<u64>, Option<proto::MemberName>) {
    let state = cluster.state.as_ref().expect("there is a state");
    (state.epoch, state.restart.as_ref().map(|r| r.number), state.primary.clone())
}

async fn stays_calm(hogs: usize, time: Duration) {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(Duration::from_secs(120)).await.unwrap();
    let before = order(&lab.cluster().await.unwrap());
    let watchers = chaos::evidence::Watchers::start(lab, 4).await.unwrap();
    let busy = Busy::with(hogs);
    let deadline = store::clock::now() + time;
    while store::clock::now() < deadline {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let cluster = lab.cluster().await.unwrap();
        assert_eq!(order(&cluster), before, "{:?}", cluster.history);
        assert!(cluster.service().is_some(), "the primary stays open: {:?}", cluster.state);
    }
    drop(busy);
    let told = watchers.load.told();
    assert_eq!(told.unknown, 0, "no session was cut");
}

#[tokio::test]
async fn with_both_cores_and_the_disk_busy_nothing_is_failed_over() {
    stays_calm(4, Duration::from_secs(30)).await;
}

/// `PGDEPUTY_CALM_MINUTES` says for how long, 60 by default.
#[tokio::test]
#[ignore = "takes an hour: make test-long"]
async fn an_hour_with_both_cores_and_the_disk_busy_gives_no_false_alarm() {
    let minutes = std::env::var("PGDEPUTY_CALM_MINUTES").ok().and_then(|m| m.parse().ok());
    stays_calm(8, Duration::from_secs(60 * minutes.unwrap_or(60))).await;
}
