//! One observer per member, past all proxies: whoever calls itself primary is asked to commit beacons.
//!
//! The one rule: a beacon says when it was begun and when its answer was read, and in which timeline the member
//! wrote it. What is not answered in time is unknown.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::{MemberName, Timeline};
use store::clock;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_postgres::types::ToSql;

use crate::session::Session;
use crate::verdict::{Ack, Beacon};

/// How often each member is asked.
const EVERY: Duration = Duration::from_millis(50);

/// Sessions per member that take turns, so that one commit that hangs does not keep back the next beacons.
const LANES: u32 = 4;

/// How long a beacon may hang. A primary that lost its voters answers late or never, and a late answer is the
/// one that would convict it; with all lanes hanging there are still two new attempts a second.
const BEACON_DEADLINE: Duration = Duration::from_secs(2);

/// Members are asked over loopback; who does not take a connection in this time is not serving.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);

/// Writes one row and tells the timeline in which it was written. Fails on a standby.
const BEACON: &str = "INSERT INTO beacon (id, timeline) \
     VALUES ($1, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int) RETURNING timeline";

/// Running observers. Dropping them stops them.
pub struct Observers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    next_id: AtomicI64,
    unknown: AtomicU64,
    beacons: Mutex<Vec<Beacon>>,
}

impl Observers {
    /// Observes each of these members at its own address.
    pub fn start(members: impl IntoIterator<Item = (MemberName, tokio_postgres::Config)>) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for (member, target) in members {
            for lane in 0..LANES {
                let observer = Observer {
                    member: member.clone(),
                    target: target.clone(),
                    shared: Arc::clone(&shared),
                };
                tasks.spawn(observer.observe_for_ever(EVERY * lane));
            }
        }
        Self { shared, tasks }
    }

    /// Stops observing; returns what was acknowledged, and how many beacons nobody knows about.
    pub async fn stop(mut self) -> (Vec<Beacon>, u64) {
        self.tasks.shutdown().await;
        let beacons = self.shared.beacons.lock().expect("no holder of this lock panics").clone();
        (beacons, self.shared.unknown.load(Ordering::SeqCst))
    }
}

/// One lane to one member.
struct Observer {
    member: MemberName,
    target: tokio_postgres::Config,
    shared: Arc<Shared>,
}

impl Observer {
    async fn observe_for_ever(self, offset: Duration) {
        tokio::time::sleep(offset).await;
        let mut turn = tokio::time::interval(EVERY * LANES);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = None;
        loop {
            turn.tick().await;
            let open = match session.take() {
                Some(open) => Some(open),
                None => Session::open(&self.target, CONNECT_DEADLINE).await.ok(),
            };
            if let Some(open) = open
                && self.beat(&open).await
            {
                session = Some(open);
            }
        }
    }

    /// Returns whether the session may be used again.
    async fn beat(&self, session: &Session) -> bool {
        // Asked first, so that a standby's log is not filled with refused writes.
        let role = session.client().query_one("SELECT pg_is_in_recovery()", &[]);
        match tokio::time::timeout(BEACON_DEADLINE, role).await {
            Ok(Ok(row)) if row.try_get(0).unwrap_or(true) => return true,
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return false,
        }
        let id = self.shared.next_id.fetch_add(1, Ordering::SeqCst);
        let invoked = clock::now();
        let values: [&(dyn ToSql + Sync); 1] = [&id];
        let beacon = session.client().query_one(BEACON, &values);
        let timeline = match tokio::time::timeout(BEACON_DEADLINE, beacon).await {
            Ok(Ok(row)) if !session.has_warned() => row.try_get::<_, i32>(0).ok(),
            Ok(_) | Err(_) => None,
        };
        let Some(timeline) = timeline else {
            self.shared.unknown.fetch_add(1, Ordering::SeqCst);
            return false;
        };
        let beacon = Beacon {
            member: self.member.clone(),
            timeline: Timeline(timeline.cast_unsigned()),
            ack: Ack { id, invoked, acked: clock::now() },
        };
        self.shared.beacons.lock().expect("no holder of this lock panics").push(beacon);
        true
    }
}
