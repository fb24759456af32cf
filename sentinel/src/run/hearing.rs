//! Whether the leader is still there: candidates ask it over UDP, and put an end to the leadership of one that was heard
//! and is heard no more. Without it a leader that dies together with the primary would cost its whole lease.
//!
//! The one rule: it has no safety weight. Each write of a leader is guarded by the key that is deleted here, so a false
//! alarm costs an election and nothing else. Who was never heard, because of a firewall, cannot fall silent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use proto::LeaderKey;
use proto::document::decode;
use serde::{Deserialize, Serialize};
use store::keys::Keys;
use store::{Guard, Operation, Store, StoreError, Txn};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// As often as keepers ask the primary.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Below the shortest `silent_after` of a primary, so that there is a leader when its voters speak; twice the longest
/// silence that was measured without a fault on a machine whose processors were busy (0.27 s).
const SILENT_AFTER: u32 = 6;
/// The pause after trouble with the store.
const AFTER_TROUBLE: Duration = Duration::from_secs(1);
/// The longest packet: one identity.
const LONGEST_PACKET: usize = 512;

/// What goes over the wire.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Packet {
    /// Are you there, `id`?
    Ask { id: String },
    /// I am.
    Here { id: String },
}

/// The ear and the mouth of one sentinel process, for all of its clusters.
pub(super) struct Hearing {
    id: String,
    socket: UdpSocket,
    peers: Mutex<BTreeMap<SocketAddr, Peer>>,
    turns: watch::Sender<u64>,
}

/// A leader that is asked.
#[derive(Debug, Default)]
struct Peer {
    id: String,
    /// How many clusters ask for it.
    wanted_by: usize,
    heard: bool,
    /// Questions since it was last heard. Counted, not timed: who was paused himself has asked nothing meanwhile.
    unanswered: u32,
}

impl Hearing {
    /// Opens the socket, on the address from which this host reaches etcd.
    pub(super) async fn open(id: String, etcd: &[String]) -> anyhow::Result<Arc<Self>> {
        let address = own_address(etcd).await;
        let socket = UdpSocket::bind((address, 0)).await;
        let socket = socket.with_context(|| format!("open a UDP socket on {address}"))?;
        Ok(Arc::new(Self { id, socket, peers: Mutex::default(), turns: watch::Sender::new(0) }))
    }

    /// Where this process is asked.
    pub(super) fn address(&self) -> Option<String> {
        self.socket.local_addr().ok().map(|address| address.to_string())
    }

    /// Asks and answers until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = [0; LONGEST_PACKET];
        loop {
            tokio::select! {
                // What has been heard counts before the next question does.
                biased;
                () = stop.cancelled() => return,
                received = self.socket.recv_from(&mut buffer) => {
                    // An error is the answer "nobody listens there" to an earlier question.
                    if let Ok((length, from)) = received {
                        self.take(&buffer[..length], from).await;
                    }
                }
                _ = ticks.tick() => self.ask().await,
            }
        }
    }

    async fn ask(&self) {
        let questions: Vec<(SocketAddr, String)> = {
            let mut peers = self.lock();
            peers.retain(|_, peer| peer.wanted_by > 0);
            peers.values_mut().for_each(|peer| peer.unanswered = peer.unanswered.saturating_add(1));
            peers.iter().map(|(address, peer)| (*address, peer.id.clone())).collect()
        };
        for (address, id) in questions {
            // What cannot be sent is as unanswered as what is lost.
            let _ = self.socket.send_to(&encode(&Packet::Ask { id }), address).await;
        }
        self.turns.send_modify(|turns| *turns += 1);
    }

    async fn take(&self, bytes: &[u8], from: SocketAddr) {
        match serde_json::from_slice(bytes) {
            Ok(Packet::Ask { id }) if id == self.id => {
                let _ = self.socket.send_to(&encode(&Packet::Here { id }), from).await;
            }
            Ok(Packet::Here { id }) => {
                if let Some(peer) = self.lock().get_mut(&from).filter(|peer| peer.id == id) {
                    peer.heard = true;
                    peer.unanswered = 0;
                }
            }
            Ok(Packet::Ask { .. }) | Err(_) => {}
        }
    }

    /// Returns once `leader` was heard and is not any more. Never for one that was not heard.
    async fn falls_silent(&self, leader: &LeaderKey) {
        let address = leader.echo.as_ref().and_then(|text| text.parse::<SocketAddr>().ok());
        let Some(address) = address.filter(|_| leader.id != self.id) else {
            return std::future::pending().await;
        };
        let _wanted = Wanted::new(self, address, &leader.id);
        let mut turns = self.turns.subscribe();
        loop {
            let silent =
                |peer: &Peer| peer.id == leader.id && peer.heard && peer.unanswered > SILENT_AFTER;
            if self.lock().get(&address).is_some_and(silent) {
                return;
            }
            if turns.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Peer>> {
        self.peers.lock().expect("no thread panics while it holds this lock")
    }
}

/// One cluster's wish that a leader be asked.
struct Wanted<'h> {
    hearing: &'h Hearing,
    address: SocketAddr,
}

impl<'h> Wanted<'h> {
    fn new(hearing: &'h Hearing, address: SocketAddr, id: &str) -> Self {
        let mut peers = hearing.lock();
        let peer = peers.entry(address).or_default();
        if peer.id != id {
            *peer = Peer { id: id.to_owned(), wanted_by: peer.wanted_by, ..Peer::default() };
        }
        peer.wanted_by += 1;
        drop(peers);
        Self { hearing, address }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        if let Some(peer) = self.hearing.lock().get_mut(&self.address) {
            peer.wanted_by = peer.wanted_by.saturating_sub(1);
        }
    }
}

/// Watches over whoever leads, and ends a leadership that has fallen silent, so that the campaign goes on at once. Never
/// returns.
pub(super) async fn depose(hearing: &Hearing, store: &dyn Store, keys: &Keys) {
    loop {
        if let Err(error) = depose_once(hearing, store, keys).await {
            debug!(%error, "watch over the leader");
            tokio::time::sleep(AFTER_TROUBLE).await;
        }
    }
}

/// One leadership, or the time without one.
async fn depose_once(hearing: &Hearing, store: &dyn Store, keys: &Keys) -> Result<(), StoreError> {
    let key = keys.leader();
    let snapshot = store.read(&key).await?;
    let mut changes = store.watch(&key, snapshot.revision + 1).await?;
    let leader = snapshot.entries.get(&key);
    let silence = async {
        match leader.map(|entry| decode::<LeaderKey>(&entry.value)) {
            Some(Ok(leader)) => hearing.falls_silent(&leader).await,
            // Nobody leads, or one whose key is of another format.
            Some(Err(_)) | None => std::future::pending().await,
        }
    };
    tokio::select! {
        changed = changes.events.recv() => {
            return match changed {
                Some(_) => Ok(()),
                None => Err(StoreError::Unavailable("watch of the leader key closed".into())),
            };
        }
        () = silence => {}
    }
    let Some(entry) = leader else { return Ok(()) };
    warn!(key, "the leader is not heard any more: ending its leadership");
    let when = vec![Guard::CreateRevision(key.clone(), entry.create_revision)];
    store.commit(Txn { when, then: vec![Operation::Delete { key }] }).await.map(drop)
}

/// Returns the address that this host has towards etcd: other sentinels reach etcd too. Loopback where etcd is on this
/// host only, or nothing is known; others then never hear us, and wait for the lease.
async fn own_address(etcd: &[String]) -> IpAddr {
    let mut found = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for endpoint in etcd {
        let rest = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
        let target = rest.trim_end_matches('/');
        let towards = async {
            for wildcard in ["0.0.0.0:0", "[::]:0"] {
                let socket = UdpSocket::bind(wildcard).await.ok()?;
                // Nothing is sent: this only asks the kernel for the route.
                if socket.connect(target).await.is_ok() {
                    return socket.local_addr().ok().map(|address| address.ip());
                }
            }
            None
        };
        if let Some(address) = towards.await {
            found = address;
        }
        if !found.is_loopback() {
            break;
        }
    }
    found
}

fn encode(packet: &Packet) -> Vec<u8> {
    serde_json::to_vec(packet).expect("a packet has a name only")
}

#[cfg(test)]
mod tests {
    use proto::document::encode as encode_document;
    use store::TxnOutcome;
    use store::election::Election;
    use store::memory::MemoryStore;

    use super::*;

    fn leader(hearing: &Hearing) -> LeaderKey {
        LeaderKey {
            id: hearing.id.clone(),
            host: "h".into(),
            listen: None,
            echo: hearing.address(),
            pgdeputy_version: "0".into(),
        }
    }

    async fn running(id: &str) -> (Arc<Hearing>, CancellationToken) {
        let hearing = Hearing::open(id.into(), &[]).await.expect("a UDP socket on loopback");
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&hearing).run(stop.clone()));
        (hearing, stop)
    }

    #[tokio::test]
    async fn a_leader_that_was_heard_falls_silent_and_one_that_never_was_does_not() {
        let ((candidate, _), (dies, stop)) = (running("candidate").await, running("dies").await);
        let leader_that_dies = leader(&dies);
        // Bound, and nobody reads: as behind a firewall.
        let mute = Hearing::open("mute".into(), &[]).await.expect("a UDP socket on loopback");
        let leader_that_is_mute = leader(&mute);
        let falls_silent = candidate.falls_silent(&leader_that_dies);
        tokio::pin!(falls_silent);
        let a_while = ASK_EVERY * (SILENT_AFTER + 4);
        assert!(tokio::time::timeout(a_while, &mut falls_silent).await.is_err(), "it answers");
        stop.cancel();
        let silent = tokio::time::timeout(Duration::from_secs(30), falls_silent).await;
        silent.expect("it is silent now");
        let never = tokio::time::timeout(a_while, candidate.falls_silent(&leader_that_is_mute));
        assert!(never.await.is_err(), "nobody has ever heard it");
    }

    /// A late write is one that was made under a leadership which another has ended meanwhile.
    #[tokio::test]
    async fn a_deposed_leader_whose_write_comes_late_changes_nothing() {
        let ((candidate, _), (dies, stop)) = (running("candidate").await, running("dies").await);
        let store = Arc::new(MemoryStore::new());
        let keys = Keys::of(&"c1".parse().expect("a name"));
        let value = encode_document(&leader(&dies)).into_bytes();
        let election =
            |value| Election::new(store.clone(), keys.leader(), value, Duration::from_secs(3600));
        let deposed = election(value).campaign().await;
        let put = Operation::Put { key: keys.state(), value: b"late".to_vec(), lease: None };
        let late = Txn { when: vec![deposed.guard.clone()], then: vec![put] };
        let deposing = depose_once(&candidate, &*store, &keys);
        let stopping = async {
            while !candidate.lock().values().any(|peer| peer.heard) {
                tokio::task::yield_now().await;
            }
            // Its process stands still from now on, and its lease has an hour to go.
            stop.cancel();
        };
        let (outcome, ()) = tokio::join!(deposing, stopping);
        outcome.expect("the leadership is ended");
        let next = election(Vec::new()).campaign().await;
        assert_eq!(store.commit(late).await.expect("the store answers"), TxnOutcome::Conflict);
        let entries = store.read(keys.prefix()).await.expect("the store answers").entries;
        assert!(!entries.contains_key(&keys.state()), "the late write was made");
        assert!(!next.lost.is_cancelled());
    }

    #[tokio::test]
    async fn the_own_address_is_the_one_towards_etcd() {
        assert!(own_address(&["http://127.0.0.1:2379".into()]).await.is_loopback());
        assert!(own_address(&["not an address".into()]).await.is_loopback());
    }
}
