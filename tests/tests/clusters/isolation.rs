//! Members of a cluster under load are cut off: from everything, from etcd, from their peers, in one direction, by silence
//! and by resets. Nothing that a client was told is lost, never do two primaries acknowledge, writes come back, and after
//! the heal redundancy does, without a person. Clients and observers reach everybody throughout: whoever serves wrongly is
//! seen to.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use chaos::lab::network::cut::{Cut, Others, Way};
use chaos::lab::network::{Placement, Site};
use chaos::lab::{LabConfig, Struck};
use proto::MemberName;
use proto::report::RejoinBy;
use store::clock;
use system_tests::UnderLoad;

const BOUND: Duration = Duration::from_secs(120);

/// A cluster under load whose members can be cut off.
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
            config.placement = Placement::Namespaces;
            // Below the default of 10 s, to save time: nothing but waiting depends on it.
            config.spec.isolation_grace = Duration::from_secs(5);
            change(config);
        };
        Self(UnderLoad::start(change, 1_000).await)
    }

    /// Cuts the primary off, expects another one, and heals. Returns how long writes were away.
    async fn loses_its_primary(
        &mut self,
        what: &str,
        cut: impl FnOnce(&MemberName) -> Cut,
    ) -> Duration {
        let (before, primary) = self.served().await;
        let struck = self.scene.lab.partition(&cut(&primary)).await.unwrap();
        let (_, after) = self.scene.lab.wait_served_after(before, BOUND).await.unwrap();
        assert_ne!(after, primary, "{what}");
        self.stops(&primary, struck, what).await;
        self.heals(struck, what).await
    }

    /// Cuts a member off as it asks, expects that no role changes for `time`, and heals. Returns how long writes were away.
    async fn keeps_its_primary(&mut self, what: &str, cuts: &[Cut], time: Duration) -> Duration {
        let before = self.served().await;
        let struck = self.scene.lab.partition(&cuts[0]).await.unwrap();
        for cut in &cuts[1..] {
            self.scene.lab.partition(cut).await.unwrap();
        }
        self.watchers.load.acknowledged_after(clock::now() + time, BOUND).await.unwrap();
        let gap = self.heals(struck, what).await;
        assert_eq!(self.served().await, before, "{what}");
        gap
    }

    /// What the voters said before they sealed comes to the primary when they have: a late reply extends nothing.
    async fn hears_its_voters_late(&mut self) {
        let what = "late replies";
        let (before, primary) = self.served().await;
        let lab = &mut self.scene.lab;
        let replies = Cut::between(&primary, Others::Members).way(Way::In);
        let struck = lab.partition(&Cut::between(&primary, Others::Etcd)).await.unwrap();
        lab.partition(&replies).await.unwrap();
        let sealed = |cluster: &chaos::lab::Cluster| {
            let state = cluster.state.as_ref()?;
            (state.sealing.is_some() || state.epoch > before.epoch).then_some(())
        };
        lab.await_cluster("the primary is sealed away", BOUND, sealed).await.unwrap();
        lab.mend(&replies).await.unwrap();
        lab.wait_served_after(before, BOUND).await.unwrap();
        self.stops(&primary, struck, what).await;
        self.heals(struck, what).await;
    }

    async fn standby(&self) -> MemberName {
        let (_, primary) = self.served().await;
        let mut others = self.scene.lab.members().into_iter().filter(|m| *m != primary);
        others.next().unwrap()
    }

    /// The cause of the last failover, and what it rested on.
    async fn last_cause(&self) -> String {
        let last = self.scene.lab.history().await.unwrap().pop().unwrap();
        format!("{}: {}", last.cause, last.evidence.join("; "))
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

    /// A member that gave up WAL tells what was in it, and the record shows that none of it was acknowledged.
    async fn tells_what_was_given_up(&self, member: &MemberName) {
        let is_back = |cluster: &chaos::lab::Cluster| {
            let last = cluster.history.last()?;
            last.rejoined.iter().rfind(|r| r.member == *member).cloned()
        };
        let lab = &self.scene.lab;
        let back = lab.await_cluster("its return is on record", BOUND, is_back).await.unwrap();
        eprintln!("{back:?}");
        let ended = back.details.steps.iter().all(|step| step.end.is_some());
        assert!(ended && !back.details.steps.is_empty(), "{back:?}");
        assert_eq!(back.by, RejoinBy::Rewind, "commits that waited were in its WAL: {back:?}");
        let steps: Vec<&str> = back.details.steps.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(steps, ["ask", "mark", "prepare", "copy", "sync", "catch-up"]);
        assert!(back.details.copied_bytes.unwrap() > 0);
        let given_up = back.details.discarded.as_ref().expect("it was read before it went");
        assert!(given_up.commits > 0 && given_up.read_to == given_up.to, "{given_up:?}");
        assert!(!given_up.relations.is_empty(), "{given_up:?}");
        let verdict = back.acknowledged.as_ref().unwrap();
        assert!(verdict.starts_with("none of it was acknowledged"), "{verdict}");
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
        let verdict = self.0.verdict().await;
        assert!(verdict.is_good(), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_primary_that_is_cut_off_is_replaced_and_never_acknowledges_beside_its_successor() {
    let mut cluster = Cluster::start(|_| {}).await;
    let (_, first) = cluster.served().await;
    let gap = cluster.loses_its_primary("cut from the cluster", Cut::isolated).await;
    cluster.tells_what_was_given_up(&first).await;
    assert!(gap < Duration::from_secs(4), "silence is enough, no lease was waited for: {gap:?}");
    // Cut from its peers alone: the drill `cut-peers`, with the same bound.
    let etcd = |member: &MemberName| Cut::between(member, Others::Etcd);
    let gap = cluster.loses_its_primary("cut from etcd", etcd).await;
    assert!(gap < Duration::from_secs(2), "it served until it was replaced: {gap:?}");
    for (what, way) in [("deaf", Way::In), ("mute", Way::Out)] {
        let gap = cluster.loses_its_primary(what, |member| Cut::isolated(member).way(way)).await;
        assert!(gap < Duration::from_secs(8), "{what}: {gap:?}");
    }
    cluster.hears_its_voters_late().await;
    cluster.held_the_promise().await;
}

#[tokio::test]
async fn cuts_that_leave_enough_voters_change_no_role_and_those_that_do_not_are_found_out() {
    let mut cluster = Cluster::start(|_| {}).await;
    let standby = cluster.standby().await;
    let gap = cluster
        .keeps_its_primary(
            "a standby is cut off",
            &[Cut::isolated(&standby)],
            Duration::from_secs(6),
        )
        .await;
    assert!(gap < Duration::from_secs(2), "the other standby acknowledges: {gap:?}");
    // The primary and one voter together, without etcd: they acknowledge, and nobody else can.
    let (_, primary) = cluster.served().await;
    let alone = cluster.standby().await;
    let voter =
        cluster.scene.lab.members().into_iter().find(|m| *m != primary && *m != alone).unwrap();
    let rest = [Others::Etcd, Others::Sentinels, Others::One(Site::Member(alone))];
    let cuts: Vec<Cut> = [&voter, &primary]
        .into_iter()
        .flat_map(|member| rest.iter().map(move |other| Cut::between(member, other.clone())))
        .collect();
    let past_all_grace = Duration::from_secs(12);
    let gap = cluster.keeps_its_primary("cut off with a voter", &cuts, past_all_grace).await;
    assert!(gap < Duration::from_secs(2), "its voter acknowledges: {gap:?}");
    let resets = |member: &MemberName| Cut::isolated(member).reset();
    cluster.loses_its_primary("cut off by resets", resets).await;
    // Streams break and keepers hear each other: nobody is silent, and commits wait.
    let streams = |member: &MemberName| Cut::between(member, Others::Members).tcp_only();
    let gap = cluster.loses_its_primary("without streams", streams).await;
    assert!(cluster.last_cause().await.contains("no voter receives"), "{gap:?}");
    cluster.held_the_promise().await;
}

#[tokio::test]
async fn of_two_members_the_standby_is_believed_when_the_leader_hears_nothing_either() {
    let mut cluster = Cluster::start(|config| config.members = 2).await;
    // The leader hears the primary: the standby's own link may be the one that is cut. Commits wait for it.
    let (before, primary) = cluster.served().await;
    let standby = cluster.standby().await;
    let one = Cut::between(&standby, Others::One(Site::Member(primary.clone())));
    let struck = cluster.scene.lab.partition(&one).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.served().await, (before, primary));
    cluster.scene.lab.heal().await.unwrap();
    cluster.heals(struck, "one link of two members").await;
    assert_eq!(cluster.served().await.0, before);
    // Commits wait for the old primary's return, as two members in strict mode do.
    let (_, primary) = cluster.served().await;
    let struck = cluster.scene.lab.partition(&Cut::isolated(&primary)).await.unwrap();
    cluster.scene.lab.wait_served_after(before, BOUND).await.unwrap();
    let cause = cluster.last_cause().await;
    assert!(cause.contains("does not answer the leader either"), "{cause}");
    cluster.stops(&primary, struck, "one of two members").await;
    cluster.scene.lab.heal().await.unwrap();
    cluster.scene.lab.wait_redundant(BOUND).await.unwrap();
    cluster.watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    cluster.held_the_promise().await;
}
