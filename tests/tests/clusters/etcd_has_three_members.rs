//! etcd has three members, and one of them is lost: killed, frozen, cut off from the others, the leader or another. Clients
//! and roles do not notice; what is decided meanwhile is decided in time.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use chaos::lab::network::cut::{Cut, How, Others, Traffic, Way};
use chaos::lab::network::{Placement, Site};
use chaos::lab::{Lab, LabConfig, Part, Service};
use proto::{MemberName, Moment};
use store::clock;
use system_tests::UnderLoad;

const BOUND: Duration = Duration::from_secs(120);

/// Longer than any lease, and than what a new leader of etcd adds to each.
const LONGER_THAN_ANY_LEASE: Duration = Duration::from_secs(7);

/// Time for a new leader of etcd, and for every client to have found another member.
const A_WHILE: Duration = Duration::from_secs(3);

/// A cluster under load with three etcd members.
struct Cluster(UnderLoad);

impl Deref for Cluster {
    type Target = UnderLoad;

    fn deref(&self) -> &UnderLoad {
        &self.0
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut UnderLoad {
        &mut self.0
    }
}

impl Cluster {
    async fn start(change: impl FnOnce(&mut LabConfig)) -> Self {
        let change = |config: &mut LabConfig| {
            config.etcd_members = 3;
            change(config);
        };
        Self(UnderLoad::start(change, 500).await)
    }

    /// Demands that since `struck` no role has changed, no session was cut, and no commit had to wait for etcd.
    async fn nobody_noticed(&self, what: &str, struck: Moment, before: &(Service, MemberName)) {
        self.watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
        assert_eq!(self.served().await, *before, "{what}");
        let told = self.watchers.load.told();
        let gap = told.longest_gap(struck, clock::now());
        eprintln!("{what}: longest write gap {gap:?}");
        assert_eq!(told.unknown, told.overdue, "{what}: no session is cut");
        assert!(gap < Duration::from_secs(1), "{what}: {gap:?}");
    }

    async fn kept_the_promise(self) {
        self.scene.lab.wait_redundant(BOUND).await.unwrap();
        let verdict = self.0.verdict().await;
        assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
    }
}

/// Returns how often processes of the lab have left an endpoint of etcd for another one.
fn moves(lab: &Lab) -> usize {
    let logs = std::fs::read_dir(lab.layout().logs()).unwrap();
    let texts = logs.map(|log| std::fs::read_to_string(log.unwrap().path()).unwrap_or_default());
    texts.map(|text| text.matches("etcd endpoint changed").count()).sum()
}

#[tokio::test]
async fn one_of_three_etcd_members_killed_or_frozen_costs_no_transaction_and_no_role() {
    let mut cluster = Cluster::start(|_| {}).await;
    let before = cluster.served().await;
    let first = cluster.scene.lab.etcd_leader(&[], BOUND).await.unwrap();

    let struck = cluster.scene.lab.kill_etcd_member(first).unwrap().at;
    let next = cluster.scene.lab.etcd_leader(&[first], BOUND).await.unwrap();
    eprintln!("etcd{} leads {:?} after the kill", next + 1, clock::now().since(struck));
    tokio::time::sleep(A_WHILE).await;
    cluster.nobody_noticed("etcd's leader is killed", struck, &before).await;
    let moved = moves(&cluster.scene.lab);
    cluster.scene.lab.start_etcd().await.unwrap();

    // It thaws as a leader that was: in etcd 3.4 it then has all leases revoked that ended by its own clock.
    let lab = &cluster.scene.lab;
    let leads = lab.etcd_leader(&[], BOUND).await.unwrap();
    let struck = lab.freeze_etcd_member(leads).await.unwrap().at;
    lab.etcd_leader(&[leads], BOUND).await.unwrap();
    tokio::time::sleep(LONGER_THAN_ANY_LEASE).await;
    cluster.nobody_noticed("etcd's leader is frozen", struck, &before).await;
    assert!(moves(lab) > moved, "some process was connected to the leader");
    lab.thaw_etcd().unwrap();
    tokio::time::sleep(A_WHILE).await;
    cluster.nobody_noticed("the frozen leader thaws", struck, &before).await;

    // A host is lost with all that was on it: the primary's member, and the leader of etcd.
    let lab = &cluster.scene.lab;
    let leads = lab.etcd_leader(&[], BOUND).await.unwrap();
    lab.freeze_etcd_member(leads).await.unwrap();
    let struck = lab.freeze(&before.1, Part::Member).await.unwrap().at;
    lab.wait_served_after(before.0, BOUND).await.unwrap();
    cluster.watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = cluster.watchers.load.told().longest_gap(struck, clock::now());
    eprintln!("the primary's member and etcd's leader frozen at once: longest write gap {gap:?}");
    lab.thaw_etcd().unwrap();
    lab.thaw(&before.1).unwrap();
    cluster.kept_the_promise().await;
}

/// Cut off from the other members of etcd; clients reach it as before.
fn without_its_peers(index: usize) -> Cut {
    Cut {
        site: Site::Etcd(index),
        from: Others::Etcd,
        way: Way::Both,
        how: How::BlackHole,
        traffic: Traffic::All,
    }
}

#[tokio::test]
#[ignore = "takes 40 s: part of make test-long"]
async fn an_etcd_member_in_a_minority_is_left_by_its_clients_and_holds_no_primary_up() {
    let mut cluster = Cluster::start(|config| {
        config.placement = Placement::Namespaces;
        // Below the default of 10 s, to save time: nothing but waiting depends on it.
        config.spec.isolation_grace = Duration::from_secs(5);
    })
    .await;
    let before = cluster.served().await;
    // Each in turn, so that all clients are with it once.
    for index in 0..3 {
        let cut = without_its_peers(index);
        let struck = cluster.scene.lab.partition(&cut).await.unwrap().at;
        tokio::time::sleep(A_WHILE).await;
        let what = format!("etcd{} is in a minority", index + 1);
        cluster.nobody_noticed(&what, struck, &before).await;
        cluster.scene.lab.mend(&cut).await.unwrap();
    }
    assert!(moves(&cluster.scene.lab) > 0, "some process was connected to it");

    // A primary that reaches just the member that is in a minority has no etcd: it serves on until it is replaced.
    let (service, primary) = before;
    let lab = &mut cluster.scene.lab;
    lab.partition(&without_its_peers(0)).await.unwrap();
    for index in [1, 2] {
        let majority = Others::One(Site::Etcd(index));
        lab.partition(&Cut::between(&primary, majority)).await.unwrap();
    }
    let struck = clock::now();
    let (_, next) = lab.wait_served_after(service, BOUND).await.unwrap();
    assert_ne!(next, primary);
    cluster.watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = cluster.watchers.load.told().longest_gap(struck, clock::now());
    eprintln!("a primary that reaches a minority of etcd: replaced, longest write gap {gap:?}");
    assert!(gap < Duration::from_secs(2), "it served until it was replaced: {gap:?}");
    cluster.scene.lab.heal().await.unwrap();
    cluster.kept_the_promise().await;
}
