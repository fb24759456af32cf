//! What operators do in a run: ask for switchovers, pause, take members out and back; and vouch for a store that was set
//! back.
//!
//! The one rule: they know what the documents of the product tell a person, and nothing else.

use std::time::Duration;

use proto::document::{decode, encode};
use proto::request::Wanted;
use proto::spec::Durability;
use proto::{ClusterState, MemberName, MemberReport, Request, RequestId, StateNumber};
use store::{Guard, Operation, Txn};

use super::executor::{Micros, Node, Sim, micros};
use super::rng::{Rng, Stream};
use super::wishes::Wishes;

/// What the real `adopt-store` adds to the last number that a member remembers.
const LEAP: u64 = 1000;
const TRIES_EVERY: Micros = 500_000;

impl Sim {
    /// Puts a request, as `pgdeputy` does for a person; nothing comes of it while etcd does not answer.
    pub fn ask(&self, wanted: Wanted, valid_for: Duration) {
        let sim = self.clone();
        self.on_the_wire(async move {
            let _ = sim.asked(wanted, valid_for).await;
        });
    }

    async fn asked(&self, wanted: Wanted, valid_for: Duration) -> Result<(), store::StoreError> {
        let id = RequestId::from_random(self.chance(Stream::Clients, |rng| rng.next()));
        let key = self.with(|w| w.keys.request(wanted.kind()));
        let (lease, _) = self.etcd_grant(Node::Client, valid_for).await?;
        self.trace(|| format!("request {id}: {wanted:?}"));
        let asked = self.host(Node::Client).wall();
        let request = Request { id, by: "ann@sim".into(), asked, valid_for, wanted };
        let value = encode(&request).into_bytes();
        let put = Operation::Put { key: key.clone(), value, lease: Some(lease) };
        self.etcd_commit(Node::Client, Txn { when: vec![Guard::Absent(key)], then: vec![put] })
            .await?;
        Ok(())
    }

    /// An operator writes another spec, and waits for nothing.
    pub fn change_spec(&self, by: u64) {
        let (key, spec) = self.with(|w| {
            let mut rng = Rng::of(by, Stream::Wishes);
            w.spec = Wishes::Any.spec(w.members.len(), &mut rng);
            w.oracle.alone |= w.spec.durability == Durability::Available;
            (w.keys.spec(), w.spec.clone())
        });
        self.trace(|| format!("an operator wants {:?} {:?}", spec.durability, spec.synchronous));
        let put = Operation::Put { key, value: encode(&spec).into_bytes(), lease: None };
        let _ = self.with_etcd(|core| core.commit(Txn { when: vec![], then: vec![put] }));
    }

    /// A member that was taken out is asked for again until it is in its place.
    pub fn readmit(&self, member: MemberName) {
        let sim = self.clone();
        self.on_the_wire(async move {
            // More than a search can take; who is not back by then is missed by I13.
            for _ in 0..120 {
                let out = sim.with(|w| {
                    w.oracle.state().is_some_and(|s| {
                        s.orders.removed.contains_key(&member)
                            || s.orders.leaving.contains_key(&member)
                    })
                });
                if out {
                    let wanted = Wanted::Readmit { member: member.clone() };
                    let _ = sim.asked(wanted, Duration::from_secs(2)).await;
                }
                sim.sleep(2_000_000).await;
            }
        });
    }

    /// An operator vouches for a store that was set back, once the members' reports say what it should hold.
    pub fn adopt_store(&self) {
        let sim = self.clone();
        self.on_the_wire(async move {
            for _ in 0..200 {
                sim.sleep(TRIES_EVERY).await;
                let now = sim.now();
                let next = sim.with(|w| {
                    // A backup brings leases along, and with them reports of its time: the command waits so long.
                    let waited = w.etcd.restored_at + 2 * micros(w.spec.lease_ttl);
                    let read = w.etcd.away == 0 && now > waited;
                    read.then(|| truth(w)).flatten()
                });
                let Some(next) = next else { continue };
                let key = sim.with(|w| w.keys.state());
                let put = Operation::Put { key, value: encode(&next).into_bytes(), lease: None };
                sim.trace(|| format!("an operator adopts state {}", next.number));
                sim.with(|w| w.oracle.adopts = true);
                let _ = sim.with_etcd(|core| core.commit(Txn { when: vec![], then: vec![put] }));
                sim.with(|w| w.oracle.adopts = false);
            }
        });
    }
}

/// The last state that a frozen member remembers, with a number above all; nothing while members are missed who could
/// know a later one: the leader of its newest Cfg and k voters who have promised nothing later meet every set that could
/// have made one, and otherwise all are needed.
fn truth(w: &super::world::World) -> Option<ClusterState> {
    let snapshot = w.etcd.core.read(w.keys.prefix());
    let found: Option<ClusterState> =
        snapshot.entries.get(&w.keys.state()).and_then(|e| decode(&e.value).ok());
    let reports: Vec<(MemberName, MemberReport)> = w
        .members
        .iter()
        .filter_map(|m| {
            let entry = snapshot.entries.get(&w.keys.member(&m.name))?;
            let report: MemberReport = decode(&entry.value).ok()?;
            let own = m.disk.files.as_ref().is_some_and(|f| f.incarnation == report.incarnation);
            own.then(|| (m.name.clone(), report))
        })
        .collect();
    let frozen = reports.iter().filter_map(|(_, r)| Some(&*r.frozen.as_ref()?.acted_on));
    let last = frozen.max_by_key(|s| s.number)?.clone();
    let same = found
        .as_ref()
        .is_some_and(|f| f.adopted > Some(last.number) && f.etcd_cluster_id == snapshot.cluster_id);
    // A primary that hands over promises before anybody else.
    let hands_over = |name: &MemberName| {
        last.handing_over().is_some()
            && last.sealing.is_none()
            && last.primary.as_ref() == Some(name)
    };
    let promised = |name: &MemberName| match hands_over(name) {
        true => last.epoch.next(),
        false => last.sealing.unwrap_or(last.epoch),
    };
    let all = reports.len() == w.members.len() && reports.iter().all(|(_, r)| r.frozen.is_some());
    let vouches = |name: &MemberName| {
        let mut of_it = reports.iter().filter(|(n, _)| n == name);
        of_it.any(|(_, r)| r.frozen.is_some() && r.promise <= last.epoch)
    };
    let meets = last.cfgs.last().is_some_and(|cfg| {
        vouches(&cfg.leader) && cfg.voters.iter().filter(|v| vouches(v)).count() >= cfg.k
    });
    if same || !(all || meets) || reports.iter().any(|(name, r)| r.promise > promised(name)) {
        return None;
    }
    let highest = found.map_or(0, |f| f.number.0).max(last.number.0);
    let number = StateNumber(highest + LEAP);
    Some(ClusterState {
        number,
        adopted: Some(number),
        etcd_cluster_id: snapshot.cluster_id,
        ..last
    })
}
