//! Members of a cluster under load are cut off: from everything, from etcd, from their peers, in one direction, by silence
//! and by resets. Nothing that a client was told is lost, never do two primaries acknowledge, writes come back, and after
//! the heal redundancy does, without a person. Clients and observers reach everybody throughout: whoever serves wrongly is
//! seen to.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::network::Placement;
use chaos::lab::network::cut::{Cut, Others, Way};
use chaos::lab::{LabConfig, Service, Struck};
use proto::{MemberName, Moment};
use store::clock;
use system_tests::{Scene, scene};

const BOUND: Duration = Duration::from_secs(120);

/// A cluster under load whose members can be cut off.
struct Cluster {
    scene: Scene,
    watchers: Watchers,
    /// When the load ran steadily, before the first cut.
    steady: (Moment, Moment),
}

impl Cluster {
    async fn start(change: impl FnOnce(&mut LabConfig)) -> Self {
        let scene = scene(|config| {
            config.placement = Placement::Namespaces;
            change(config);
        })
        .await;
        scene.lab.wait_redundant(BOUND).await.unwrap();
        let watchers = Watchers::start(&scene.lab, 4).await.unwrap();
        let from = clock::now();
        watchers.load.acknowledged_count(1_000, BOUND).await.unwrap();
        Self { scene, watchers, steady: (from, clock::now()) }
    }

    async fn primary(&self) -> (Service, MemberName) {
        self.scene.lab.cluster().await.unwrap().service().unwrap()
    }

    /// Cuts the primary off, expects another one, and heals. Returns how long writes were away.
    async fn loses_its_primary(
        &mut self,
        what: &str,
        cut: impl FnOnce(&MemberName) -> Cut,
    ) -> Duration {
        let (before, primary) = self.primary().await;
        let struck = self.scene.lab.partition(&cut(&primary)).await.unwrap();
        let (_, after) = self.scene.lab.wait_served_after(before, BOUND).await.unwrap();
        assert_ne!(after, primary, "{what}");
        self.stops(&primary, struck, what).await;
        self.heals(struck, what).await
    }

    /// The fenced primary is gone within `lease_ttl` of its last renewal or sign, whoever it was cut from.
    async fn stops(&self, member: &MemberName, struck: Struck, what: &str) {
        let runs = || self.scene.lab.postmaster(member).is_ok();
        let deadline = clock::now() + Duration::from_secs(6);
        while runs() {
            assert!(clock::now() < deadline, "{what}: PostgreSQL of {member} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        eprintln!("{what}: {member} stopped {:?} after the cut", clock::now().since(struck.at));
    }

    async fn heals(&mut self, struck: Struck, what: &str) -> Duration {
        self.watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
        let healed = self.scene.lab.heal().await.unwrap();
        self.scene.lab.wait_redundant(BOUND).await.unwrap_or_else(|e| panic!("{what}: {e:#}"));
        let now = clock::now();
        let gap = self.watchers.load.told().longest_gap(struck.at, now);
        eprintln!(
            "{what}: longest write gap {gap:?}, redundant {:?} after the heal",
            now.since(healed.at)
        );
        gap
    }

    async fn held_the_promise(self) {
        let (evidence, _) = self.watchers.finish(&self.scene.lab, self.steady).await.unwrap();
        let verdict = chaos::verdict::judge(&evidence);
        assert!(verdict.is_good(), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_primary_that_is_cut_off_is_replaced_and_never_acknowledges_beside_its_successor() {
    let mut cluster = Cluster::start(|_| {}).await;
    let gap = cluster.loses_its_primary("cut from the cluster", Cut::isolated).await;
    assert!(gap < Duration::from_secs(4), "silence is enough, no lease was waited for: {gap:?}");
    let peers = |member: &MemberName| Cut::between(member, Others::Members);
    let gap = cluster.loses_its_primary("cut from its peers", peers).await;
    assert!(gap < Duration::from_secs(4), "silence is enough, no lease was waited for: {gap:?}");
    let etcd = |member: &MemberName| Cut::between(member, Others::Etcd);
    let gap = cluster.loses_its_primary("cut from etcd", etcd).await;
    assert!(gap < Duration::from_secs(2), "it served until it was replaced: {gap:?}");
    for (what, way) in [("deaf", Way::In), ("mute", Way::Out)] {
        let gap = cluster.loses_its_primary(what, |member| Cut::isolated(member).way(way)).await;
        assert!(gap < Duration::from_secs(8), "{what}: {gap:?}");
    }
    cluster.held_the_promise().await;
}
