//! etcd is restored from a backup that is older than a failover. Clients are served, nothing is decided, and nothing of the
//! backup is believed, until an operator vouches for the store by `pgdeputy adopt-store`.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::process::Command;
use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::Lab;
use chaos::lab::view::Cluster;
use proto::{ClusterState, MemberName, StateNumber};
use store::{Operation, Txn, clock};
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

/// Longer than any lease: who needs one has lost it by then.
const BEYOND_LEASES: Duration = Duration::from_secs(6);

fn adopt_store(lab: &Lab, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(system_tests::pgdeputy());
    command.args(["adopt-store", "--cluster", "demo", "--etcd", &lab.etcd_urls().join(",")]);
    let done = command.args(more).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&done.stdout) + &text(&done.stderr);
    eprintln!("adopt-store {more:?}:\n{said}");
    (done.status.success(), said)
}

/// The reason of each frozen member.
fn reasons(cluster: &Cluster) -> Vec<String> {
    let frozen = cluster.reports.values().filter_map(|r| r.frozen.as_ref());
    frozen.map(|f| f.why.clone()).collect()
}

async fn all_are_frozen(lab: &Lab, because: &str) {
    let frozen = |cluster: &Cluster| {
        let reasons = reasons(cluster);
        (reasons.len() == 3 && reasons.iter().all(|why| why.contains(because))).then_some(())
    };
    lab.await_cluster("all members are frozen", BOUND, frozen).await.unwrap();
}

async fn serves(lab: &Lab, primary: &MemberName, watchers: &Watchers) {
    let since = clock::now();
    tokio::time::sleep(BEYOND_LEASES).await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    assert_eq!(lab.endpoint(primary, "/primary").await.unwrap(), 200);
    let gap = watchers.load.told().longest_gap(since, clock::now());
    assert!(gap < Duration::from_secs(1), "clients waited for {gap:?}");
}

/// Writes a state as if sentinels that were not told had gone on with the restored one.
async fn catch_up(lab: &Lab) -> StateNumber {
    let key = lab.keys().state();
    let seen = lab.store().read(&key).await.unwrap();
    let mut state: ClusterState = proto::document::decode(&seen.entries[&key].value).unwrap();
    state.number = StateNumber(state.number.0 + 500);
    state.etcd_cluster_id = seen.cluster_id;
    let value = proto::document::encode(&state).into_bytes();
    let put = Operation::Put { key, value, lease: None };
    lab.store().commit(Txn { when: vec![], then: vec![put] }).await.unwrap();
    state.number
}

#[tokio::test]
async fn a_store_older_than_a_failover_is_not_believed_until_it_is_adopted_and_nobody_is_cut() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let backup = lab.layout().root.join("etcd.backup");
    lab.save_etcd(&backup).unwrap();
    let (before, first) = lab.cluster().await.unwrap().service().unwrap();
    lab.kill_postgres(&first).unwrap();
    lab.wait_served_after(before, BOUND).await.unwrap();
    let agreed = lab.wait_redundant(BOUND).await.unwrap().state.unwrap();
    let primary = agreed.primary.clone().unwrap();
    assert_ne!(primary, first, "the backup names another primary");

    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let steady_from = clock::now();
    for token in ["pgdeputy-lab", "another-cluster"] {
        lab.restore_etcd(&backup, token).await.unwrap();
        all_are_frozen(lab, "").await;
        let number = catch_up(lab).await;
        all_are_frozen(lab, &number.to_string()).await;
        serves(lab, &primary, &watchers).await;
        let held = lab.cluster().await.unwrap().state.unwrap();
        assert_eq!(held.number, number, "a sentinel has decided on a restored store");

        let (fine, said) = adopt_store(lab, &[]);
        assert!(fine && said.contains("nothing was changed"), "{said}");
        assert!(!adopt_store(lab, &["--confirm", "other"]).0);
        assert_eq!(lab.cluster().await.unwrap().state.unwrap().number, number);
        let (fine, said) = adopt_store(lab, &["--confirm", "demo"]);
        assert!(fine && said.contains("written as state"), "{said}");
        let thawed = |cluster: &Cluster| reasons(cluster).is_empty().then_some(());
        lab.await_cluster("nobody is frozen", BOUND, thawed).await.unwrap();
        let now = lab.wait_redundant(BOUND).await.unwrap().state.unwrap();
        assert_eq!((now.epoch, now.primary.as_ref()), (agreed.epoch, Some(&primary)));
        assert!(!adopt_store(lab, &[]).0, "there is nothing to adopt");
    }
    assert_eq!(watchers.load.told().unknown, 0, "no session is cut and no commit fails");

    // Decisions go on.
    let struck = clock::now();
    let (before, _) = lab.cluster().await.unwrap().service().unwrap();
    lab.kill_postgres(&primary).unwrap();
    lab.wait_served_after(before, BOUND).await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
