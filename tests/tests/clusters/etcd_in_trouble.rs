//! etcd stands still, and etcd is full. Nobody is failed over, demoted or cut, and decisions go on afterwards without a
//! person having touched pgdeputy.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::Lab;
use proto::ClusterState;
use store::{Operation, StoreError, Txn, clock};
use system_tests::scene;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BOUND: Duration = Duration::from_secs(120);

/// Longer than any lease: who needs one has lost it by then.
const STALL: Duration = Duration::from_secs(10);

/// Long enough for each keeper's lease to have ended, were it not renewed.
const FULL_FOR: Duration = Duration::from_secs(8);

/// Raises etcd's alarm NOSPACE, as etcd itself does when its quota is used up: it takes no put and no new lease until the
/// alarm is disarmed.
async fn fill(lab: &Lab) {
    let url = lab.etcd_urls().remove(0);
    let address = url.strip_prefix("http://").unwrap();
    let body = r#"{"action":"ACTIVATE","memberID":"0","alarm":"NOSPACE"}"#;
    let mut etcd = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /v3/maintenance/alarm HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    etcd.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    etcd.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

async fn put_something(lab: &Lab) -> Result<(), StoreError> {
    let key = format!("{}test", lab.keys().prefix());
    let put = Operation::Put { key, value: Vec::new(), lease: None };
    lab.store().commit(Txn { when: vec![], then: vec![put] }).await.map(drop)
}

async fn agreed(lab: &Lab) -> ClusterState {
    lab.wait_redundant(BOUND).await.unwrap().state.unwrap()
}

#[tokio::test]
async fn an_etcd_that_stands_still_for_10_s_or_is_full_costs_no_session_and_no_role() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    let before = agreed(lab).await;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let steady_from = clock::now();

    lab.freeze_etcd().await.unwrap();
    assert!(lab.store().read(lab.keys().prefix()).await.is_err(), "etcd answers");
    tokio::time::sleep(STALL).await;
    lab.thaw_etcd().unwrap();
    let after = agreed(lab).await;
    assert_eq!((after.epoch, &after.primary), (before.epoch, &before.primary));

    fill(lab).await;
    let refused = put_something(lab).await.unwrap_err();
    let remedy = "alarm disarm";
    assert!(matches!(&refused, StoreError::Refused(why) if why.contains(remedy)), "{refused}");
    tokio::time::sleep(FULL_FOR).await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let refused = put_something(lab).await;
    assert!(refused.is_err(), "etcd has taken a put while it was full");
    lab.etcdctl_with(&["alarm", "disarm"]).unwrap();
    let after = agreed(lab).await;
    assert_eq!((after.epoch, &after.primary), (before.epoch, &before.primary));
    let told = watchers.load.told();
    assert_eq!(told.unknown, 0, "no session is cut and no commit fails");
    let gap = told.longest_gap(steady_from, clock::now());
    assert!(gap < Duration::from_secs(1), "clients waited for {gap:?}");

    // Decisions go on.
    let struck = clock::now();
    let (service, primary) = lab.cluster().await.unwrap().service().unwrap();
    lab.kill_postgres(&primary).unwrap();
    lab.wait_served_after(service, BOUND).await.unwrap();
    agreed(lab).await;
    let (evidence, _) = watchers.finish(lab, (steady_from, struck)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
