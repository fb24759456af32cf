use std::collections::BTreeSet;

use chaos::canary::{Acknowledged, Evidence, Origin, ReadBack};
use proto::spec::DrillSpec;
use proto::{Lsn, Moment, Timeline, WallTime};
use store::MemoryStore;
use store::memory::CommitFault;

use super::*;
use crate::target::StoreArgs;

fn target() -> Target {
    Target { cluster: "main".parse().unwrap(), store: StoreArgs::plain("http://127.0.0.1:1") }
}

fn origin(timeline: u32) -> Origin {
    Origin { timeline: Timeline(timeline), started_us: 1 }
}

fn acknowledged(id: i64, second: u64, timeline: u32) -> Acknowledged {
    let at = Moment::since_boot(Duration::from_secs(second));
    let wall = WallTime(second.cast_signed() * 1000);
    Acknowledged { id, sent: at, answered: at, wall, origin: origin(timeline) }
}

fn evidence(all: &[(i64, u64, u32)], held: &[i64]) -> Evidence {
    let (highest_sent, second, timeline) = *all.last().unwrap();
    Evidence {
        acknowledged: all.iter().map(|(id, at, on)| acknowledged(*id, *at, *on)).collect(),
        unknown: 0,
        read_back: vec![ReadBack {
            asked: Moment::since_boot(Duration::from_secs(second)),
            wall: WallTime(second.cast_signed() * 1000),
            origin: origin(timeline),
            lsn: Lsn::default(),
            ids: held.iter().copied().collect::<BTreeSet<_>>(),
            highest_sent,
        }],
        keep: 10_000,
    }
}

#[test]
fn runs_are_added_up_a_gap_between_two_counts_and_a_loss_is_told() {
    let now = WallTime(99);
    let mut book = Book::of(CanaryRecord::begun("north:1".into(), WallTime(0)), "south:2");
    book.close(&evidence(&[(1, 10, 1), (2, 11, 1), (3, 15, 2)], &[1, 2, 3]), now);
    let first = book.record().clone();
    assert_eq!((first.acknowledged, first.lost, first.unproven), (3, 0, 0));
    assert_eq!((first.gaps.len(), first.gaps[0].ms, &first.runner[..]), (1, 4000, "south:2"));
    assert_eq!((first.gaps[0].before, first.gaps[0].after), (Timeline(1), Timeline(2)));

    let next = evidence(&[(1, 18, 2), (2, 19, 2)], &[1]);
    let seen = book.with(&next, now);
    assert_eq!(seen.gaps.last().unwrap().ms, 3000, "from the last one of the run before");
    assert_eq!((seen.acknowledged, seen.lost), (5, 1));
    assert!(seen.losses[0].contains("lacks canaries [2]"), "{seen:?}");
    assert_eq!(book.with(&next, now), seen, "a run that goes on is not added twice");
    book.close(&next, now);
    assert_eq!((book.record().lost, book.record().gaps.len()), (1, 2));
    let shown = Told(book.record(), None).to_string();
    assert!(shown.contains("written by nobody now") && shown.contains("LOST"), "{shown}");

    // Nobody was asked before it ended.
    let unasked = Evidence { read_back: Vec::new(), ..evidence(&[(1, 20, 2)], &[]) };
    assert_eq!(book.with(&unasked, now).unproven, 0);
    book.close(&unasked, now);
    assert_eq!(book.record().unproven, 1);
}

async fn wish(store: &MemoryStore, canary: CanaryWhen) {
    let drills = DrillSpec { canary, ..DrillSpec::default() };
    let value = encode(&ClusterSpec { drills, ..ClusterSpec::default() }).into_bytes();
    let put = Operation::Put { key: target().keys().spec(), value, lease: None };
    store.commit(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
}

#[tokio::test]
async fn while_etcd_does_not_answer_the_writing_goes_on_and_what_was_seen_is_told_later() {
    let (store, target) = (MemoryStore::new(), target());
    let runner = Standing { store: &store, target: &target, own: "north:1" };
    wish(&store, CanaryWhen::Always).await;
    let (lease, _) = runner.take().await.unwrap().expect("it is free");
    let seen = runner.known().await.unwrap();
    store.make_reads_unavailable();
    store.fail_next_commit(CommitFault::NotSent);
    assert!(runner.is_still_wanted().await);
    assert!(!runner.has_told(&seen, lease).await.unwrap());
    store.make_reads_available();
    assert!(runner.has_told(&seen, lease).await.unwrap());
    wish(&store, CanaryWhen::Drills).await;
    assert!(!runner.is_still_wanted().await);
}

#[tokio::test]
async fn one_runner_has_the_right_where_it_is_wanted_and_the_next_one_when_its_lease_has_ended() {
    let (store, target) = (MemoryStore::new(), target());
    let runner = |own| Standing { store: &store, target: &target, own };
    let (first, second) = (runner("north:1"), runner("south:2"));
    assert!(!first.is_wanted().await.unwrap(), "there is no cluster");
    for (canary, wanted) in [(CanaryWhen::Drills, false), (CanaryWhen::Always, true)] {
        wish(&store, canary).await;
        assert_eq!(first.is_wanted().await.unwrap(), wanted);
    }
    let (lease, _) = first.take().await.unwrap().expect("it is free");
    assert!(second.take().await.unwrap().is_none());
    let seen = first.known().await.unwrap();
    assert!(first.has_told(&seen, lease).await.unwrap());
    store.advance(2 * LEASE);
    let (after, _) = second.take().await.unwrap().expect("its holder is gone");
    let late = first.has_told(&seen, lease).await.unwrap_err();
    assert!(late.to_string().contains("another's"), "{late}");
    assert_eq!(second.known().await.unwrap(), seen, "it goes on from there");
    assert!(second.has_told(&seen, after).await.unwrap());
}
