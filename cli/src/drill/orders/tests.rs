use std::time::Duration;

use proto::document::encode;
use proto::drill::{DrillTarget, LiveFault};
use proto::{Document, Epoch};
use store::MemoryStore;

use super::*;
use crate::target::StoreArgs;

fn target() -> Target {
    Target { cluster: "main".parse().unwrap(), store: StoreArgs::plain("http://127.0.0.1:1") }
}

fn id(number: u64) -> RequestId {
    RequestId::from_random(number)
}

async fn put<D: Document>(store: &MemoryStore, key: String, document: &D) {
    let value = encode(document).into_bytes();
    let then = vec![Operation::Put { key, value, lease: None }];
    store.commit(Txn { when: Vec::new(), then }).await.unwrap();
}

async fn put_drill(store: &MemoryStore, number: u64) {
    let (fault, by) = (LiveFault::Walreceiver, "ann@north".to_owned());
    let drill = Drill {
        id: id(number),
        fault,
        target: DrillTarget::Member("b".parse().unwrap()),
        by: by.clone(),
        epoch: Epoch(2),
        bound: Duration::from_secs(5),
    };
    put(store, target().keys().drill(), &drill).await;
    let work = DrillWork::Drill { fault };
    put(store, target().keys().drill_lock(), &DrillLock { id: id(number), by, work }).await;
}

async fn put_reboots(store: &MemoryStore, member: Option<&str>) {
    let member = member.map(|m| m.parse().unwrap());
    let work = DrillWork::Reboots { member };
    let lock = DrillLock { id: id(3), by: "bob@south".into(), work };
    put(store, target().keys().drill_lock(), &lock).await;
}

async fn stands(store: &MemoryStore) -> Option<RequestId> {
    Stands::find(store, &target().keys()).await.unwrap().filter(|s| s.entry.is_some()).map(|s| s.id)
}

#[tokio::test]
async fn an_abort_ends_what_it_has_seen_and_no_drill_that_began_since() {
    let store = MemoryStore::new();
    put_drill(&store, 1).await;
    let seen = Stands::find(&store, &target().keys()).await.unwrap().unwrap();
    put_drill(&store, 2).await;
    assert!(!seen.end(&store).await.unwrap(), "the first one ended by itself");
    assert_eq!(stands(&store).await, Some(id(2)), "the second one goes on");
    let named = abort(&store, &target(), Some(&id(1))).await.unwrap_err().to_string();
    assert!(named.contains("nothing is ended"), "{named}");
    assert_eq!(stands(&store).await, Some(id(2)));
    let ended = abort(&store, &target(), Some(&id(2))).await.unwrap();
    assert_eq!(ended.drill, Some(id(2)));
    let left = abort(&store, &target(), None).await.unwrap();
    assert_eq!(left.drill, Some(id(2)), "its runner still looks");
    assert!(left.to_string().contains("undone already"), "{left}");
}

#[tokio::test]
async fn an_abort_ends_reboots_also_where_a_turn_has_come_since() {
    let store = MemoryStore::new();
    let nothing = abort(&store, &target(), None).await.unwrap();
    assert_eq!((nothing.drill, nothing.then), (None, "no drill is under way"));
    put_reboots(&store, None).await;
    let seen = Stands::find(&store, &target().keys()).await.unwrap().unwrap();
    put_reboots(&store, Some("b")).await;
    assert!(!seen.end(&store).await.unwrap(), "that was another revision");
    let ended = abort(&store, &target(), Some(&id(3))).await.unwrap();
    assert!(ended.to_string().contains("no other member will be rebooted"), "{ended}");
    assert_eq!(stands(&store).await, None);
}
