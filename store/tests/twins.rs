//! Random histories, told to etcd and to its twin: every answer, revision and event must be the same.
//!
//! More of them than every commit runs: `make test-long`, or one with PGDEPUTY_TWINS=<first seed>,<how many>.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;

use common::etcd::Etcd;
use common::{all_told, closing, next_events, within};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;
use store::{
    EtcdStore, Guard, LeaseId, MemoryStore, Operation, Snapshot, Store, StoreError, Txn,
    TxnOutcome, Watch, WatchEvent,
};

const STEPS: usize = 400;
/// Of a lease that is to lapse, and is renewed with each step until then: longer than any step on a busy machine.
const SHORT: Duration = Duration::from_secs(4);
/// Long enough that it never expires by itself: the two clocks differ.
const LONG: Duration = Duration::from_secs(600);
/// How often a history waits for a lease to lapse, which takes seconds each time.
const LAPSES: usize = 1;

/// Names leases by the order of their grants, because etcd draws their numbers at random.
struct Side<S> {
    store: S,
    leases: Vec<LeaseId>,
    watches: Vec<Watch>,
}

impl<S: Store> Side<S> {
    fn lease(&self, nth: Option<usize>) -> Option<LeaseId> {
        nth.map(|nth| self.leases[nth])
    }

    async fn answer(&mut self, step: &Step) -> String {
        match step {
            Step::Grant(ttl) => {
                let (id, granted) = self.store.grant(*ttl).await.unwrap();
                self.leases.push(id);
                format!("{granted:?}")
            }
            Step::Read(prefix) => self.all_below(prefix).await.join("\n"),
            Step::Watch { prefix, from } => {
                self.watches.push(self.store.watch(prefix, *from).await.unwrap());
                "watches".to_owned()
            }
            // What makes them happen differs: see `outside`.
            Step::Lapse(_) | Step::Compact(_) => "done".to_owned(),
            Step::Revoke(nth) => said(self.store.revoke(self.leases[*nth]).await),
            Step::KeepAlive(nth) => said(self.store.keep_alive(self.leases[*nth]).await),
            Step::Commit(draft) => {
                let txn = draft.for_side(self);
                match self.store.commit(txn).await {
                    Ok(TxnOutcome::Committed { revision }) => format!("committed @{revision}"),
                    Ok(TxnOutcome::Conflict) => "conflict".to_owned(),
                    Err(error) => said(Err(error)),
                }
            }
        }
    }

    async fn everything(&self) -> Vec<String> {
        self.all_below("").await
    }

    async fn all_below(&self, prefix: &str) -> Vec<String> {
        let Snapshot { revision, entries, .. } = self.store.read(prefix).await.unwrap();
        let lines = entries.into_iter().map(|(key, entry)| {
            let lease = entry.lease.map(|id| self.leases.iter().position(|other| *other == id));
            format!(
                "{key} {:?} {} {} {lease:?}",
                entry.value, entry.create_revision, entry.mod_revision
            )
        });
        std::iter::once(format!("@{revision}")).chain(lines).collect()
    }
}

fn said(answer: Result<(), StoreError>) -> String {
    match answer {
        Ok(()) => "done".to_owned(),
        Err(StoreError::LeaseExpired) => "lease expired".to_owned(),
        Err(StoreError::Refused(_)) => "refused".to_owned(),
        Err(error) => panic!("{error}"),
    }
}

#[derive(Debug)]
enum Step {
    Grant(Duration),
    Read(String),
    Watch {
        prefix: String,
        from: i64,
    },
    /// The nth lease is not renewed and lapses.
    Lapse(usize),
    /// All before this revision is forgotten.
    Compact(i64),
    Revoke(usize),
    KeepAlive(usize),
    Commit(Draft),
}

/// A transaction before its leases have numbers.
#[derive(Debug)]
struct Draft {
    txn: Txn,
    /// For each operation, whether a put goes under the nth lease.
    leases: Vec<Option<usize>>,
    lease_guard: Option<(String, usize)>,
}

impl Draft {
    fn for_side<S: Store>(&self, side: &Side<S>) -> Txn {
        let mut txn = self.txn.clone();
        for (operation, nth) in txn.then.iter_mut().zip(&self.leases) {
            if let Operation::Put { lease, .. } = operation {
                *lease = side.lease(*nth);
            }
        }
        let guard = self.lease_guard.as_ref();
        txn.when.extend(guard.map(|(key, nth)| Guard::Lease(key.clone(), side.leases[*nth])));
        txn
    }
}

/// What a history knows of itself.
#[derive(Default)]
struct Past {
    leases: usize,
    revision: i64,
    compacted: i64,
    /// The short lease, and when it was granted.
    short: Option<(usize, usize)>,
    lapses: usize,
}

fn random_step(random: &mut StdRng, past: &mut Past, number: usize) -> Step {
    if let Some((nth, _)) = past.short.take_if(|(_, granted)| number >= *granted + 20) {
        past.lapses += 1;
        return Step::Lapse(nth);
    }
    let Past { leases, revision, .. } = *past;
    match random.random_range(0..36) {
        0 | 1 => Step::Grant(LONG),
        2 if leases > 0 => Step::Revoke(random.random_range(0..leases)),
        3 if leases > 0 => Step::KeepAlive(random.random_range(0..leases)),
        4 => Step::Read(["", "k", "k1", "k6", "l"][random.random_range(0..5)].to_owned()),
        5 if number.is_multiple_of(5) => {
            let prefix = ["", "k", "k2"][random.random_range(0..3)].to_owned();
            let from = revision - random.random_range(-3..30);
            // What was deleted at the very revision that was compacted, etcd may tell or not.
            let from = if from == past.compacted { from + 1 } else { from };
            Step::Watch { prefix, from: from.max(1) }
        }
        6 if number.is_multiple_of(40) && revision > past.compacted + 1 => {
            past.compacted = revision - random.random_range(0..(revision - past.compacted).min(20));
            Step::Compact(past.compacted)
        }
        7 if past.short.is_none() && past.lapses < LAPSES => {
            past.short = Some((leases, number));
            Step::Grant(SHORT)
        }
        _ => Step::Commit(random_draft(random, leases, revision)),
    }
}

fn random_draft(random: &mut StdRng, leases: usize, revision: i64) -> Draft {
    let key = |random: &mut StdRng| format!("k{}", random.random_range(0..6));
    let mut draft = Draft { txn: Txn::default(), leases: Vec::new(), lease_guard: None };
    for _ in 0..random.random_range(0..2) {
        let (key, near) = (key(random), revision - random.random_range(0..6));
        draft.txn.when.push(match random.random_range(0..3) {
            0 => Guard::Absent(key),
            1 => Guard::ModRevision(key, near.max(0)),
            _ => Guard::CreateRevision(key, near.max(0)),
        });
    }
    if leases > 0 && random.random_bool(0.1) {
        draft.lease_guard = Some((key(random), random.random_range(0..leases)));
    }
    for _ in 0..random.random_range(0..4) {
        let key = key(random);
        let value = vec![random.random()];
        // Mostly a lease of late, which is likely to be alive.
        let oldest = leases.saturating_sub(4);
        let under =
            (leases > 0 && random.random_bool(0.4)).then(|| random.random_range(oldest..leases));
        draft.leases.push(under);
        draft.txn.then.push(match random.random_range(0..3) {
            0 => Operation::Delete { key },
            _ => Operation::Put { key, value, lease: None },
        });
    }
    draft
}

/// Does what is not asked through the store: lets a lease lapse, or history be forgotten.
async fn outside(
    step: &Step,
    process: &Etcd,
    etcd: &mut Side<EtcdStore>,
    twin: &mut Side<MemoryStore>,
) {
    match step {
        Step::Lapse(nth) => {
            twin.store.advance(SHORT);
            within("a lease to lapse", async {
                while process.knows_lease(etcd.leases[*nth].0).await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
            .await;
        }
        Step::Compact(revision) => {
            // The twin tells of the past at once.
            process.watches_are_caught_up().await;
            twin.store.compact(*revision);
            process.compact(*revision).await;
        }
        Step::Grant(_)
        | Step::Read(_)
        | Step::Watch { .. }
        | Step::Revoke(_)
        | Step::KeepAlive(_)
        | Step::Commit(_) => {}
    }
}

/// Returns what a watch of the twin was told, and whether it is closed.
fn drained(watch: &mut Watch) -> (Vec<WatchEvent>, bool) {
    let mut events = Vec::new();
    loop {
        match watch.events.try_recv() {
            Ok(batch) => events.extend(batch),
            Err(error) => {
                return (events, error == tokio::sync::mpsc::error::TryRecvError::Disconnected);
            }
        }
    }
}

async fn same_history(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let process = Etcd::start().await;
    let real = EtcdStore::connect(&[process.url()]).await.unwrap();
    let mut etcd = Side { store: real, leases: Vec::new(), watches: Vec::new() };
    let mut twin = Side { store: MemoryStore::new(), leases: Vec::new(), watches: Vec::new() };
    let from_the_start = Step::Watch { prefix: String::new(), from: 1 };
    etcd.answer(&from_the_start).await;
    twin.answer(&from_the_start).await;
    let mut past = Past::default();
    for number in 0..STEPS {
        past.revision = twin.store.read("").await.unwrap().revision;
        past.leases = twin.leases.len();
        let step = random_step(&mut random, &mut past, number);
        outside(&step, &process, &mut etcd, &mut twin).await;
        if let Some((nth, _)) = past.short.filter(|(nth, _)| *nth < twin.leases.len()) {
            let renew = Step::KeepAlive(nth);
            let (told, expected) = (etcd.answer(&renew).await, twin.answer(&renew).await);
            assert_eq!(told, expected, "seed {seed}, before step {number}");
        }
        let (told, expected) = (etcd.answer(&step).await, twin.answer(&step).await);
        assert_eq!(told, expected, "seed {seed}, step {number}: {step:?}");
        assert_eq!(etcd.everything().await, twin.everything().await, "seed {seed}, after {step:?}");
    }
    assert_eq!(past.lapses, LAPSES, "seed {seed}");
    for (number, watch) in twin.watches.iter_mut().enumerate() {
        let (expected, closed) = drained(watch);
        assert!(number > 0 || expected.len() > STEPS / 3, "only {} events", expected.len());
        let watch = &mut etcd.watches[number];
        if closed {
            closing(watch).await;
            continue;
        }
        let told = next_events(watch, expected.len()).await;
        assert_eq!(all_told(&told), all_told(&expected), "seed {seed}, watch {number}");
    }
}

#[tokio::test]
async fn random_histories_are_the_same_in_etcd_and_its_twin() {
    // Each waits for a lease to lapse most of the time.
    tokio::join!(same_history(1), same_history(2), same_history(3));
}

#[tokio::test]
#[ignore = "minutes: part of make test-long"]
async fn many_random_histories_are_the_same_in_etcd_and_its_twin() {
    let asked = std::env::var("PGDEPUTY_TWINS").unwrap_or_else(|_| "1000,60".to_owned());
    let (first, count) = asked.split_once(',').expect("PGDEPUTY_TWINS is <first seed>,<how many>");
    let (first, count): (u64, u64) = (first.parse().unwrap(), count.parse().unwrap());
    for seed in first..first + count {
        println!("seed {seed}");
        same_history(seed).await;
    }
}
