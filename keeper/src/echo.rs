//! Keepers of standbys ask the primary's keeper ten times a second whether it is there. It answers only while its
//! PostgreSQL does. Not heard for `silent_after`, and the stream silent too, is a word in the report, and no more: the
//! leader acts when all live voters say it. It has no safety weight, so it may be eager.
//!
//! While its stream is silent a standby also asks the other standbys: whether one that could be chosen would be followed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::echo::{LONGEST_PACKET, Packet};
use proto::{Epoch, MemberName};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::postgres::probe::SqlFacts;
use crate::worker::Worker;

/// Ten questions fit into the default `silent_after`: a lost packet or two are nothing.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A primary whose PostgreSQL has not answered its own keeper for this long does not answer for it. Twice the steady
/// pace of the probe, and below any `silent_after`.
const FRESH: Duration = Duration::from_millis(500);

/// So many questions in a row without an answer are a reason to look closer, and no more: see `standstill`.
const SUSPICIOUS: u32 = 3;

/// What the echo works with.
pub struct Echo {
    pub worker: Arc<Worker>,
    pub socket: UdpSocket,
    pub sql: watch::Receiver<Option<SqlFacts>>,
}

/// Whom a standby asks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    primary: MemberName,
    epoch: Epoch,
    address: String,
}

/// How often a target was asked without an answer since it was last heard. Counted, not timed: a keeper that was paused
/// itself has asked nothing meanwhile.
#[derive(Debug, Default)]
struct Unanswered {
    target: Option<Target>,
    questions: u32,
}

/// How often each other standby was asked since it was last heard; nobody is in it before the first answer.
type Peers = BTreeMap<MemberName, u32>;

/// Asks and answers until `stop`.
pub async fn echo(echo: Echo, stop: CancellationToken) {
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut unanswered, mut peers) = (Unanswered::default(), Peers::new());
    let mut buffer = [0; LONGEST_PACKET];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {
                echo.ask(&mut unanswered).await;
                echo.hail(&mut peers).await;
            }
            received = echo.socket.recv_from(&mut buffer) => {
                // An error is the answer "nobody listens there" to an earlier question.
                if let Ok((length, from)) = received {
                    echo.take(&buffer[..length], from, (&mut unanswered, &mut peers)).await;
                }
            }
        }
    }
}

impl Echo {
    async fn ask(&self, unanswered: &mut Unanswered) {
        let target = self.target();
        if unanswered.target != target {
            *unanswered = Unanswered { target: target.clone(), questions: 0 };
        }
        let silent_after = self.worker.spec().silent_after;
        let enough = questions_in(silent_after);
        let silence = target
            .as_ref()
            .map(|t| t.epoch)
            .filter(|_| unanswered.questions >= enough && self.stream_is_silent(silent_after));
        if self.worker.local().silence != silence {
            tracing::info!(?silence, "what is heard of the primary changed");
            self.worker.update(|local| local.silence = silence);
        }
        let Some(target) = target else { return };
        let ask = Packet::Ask { cluster: self.worker.place.cluster.clone(), epoch: target.epoch };
        unanswered.questions = unanswered.questions.saturating_add(1);
        if unanswered.questions > SUSPICIOUS {
            let now = store::clock::now();
            self.worker.note_quietly(|local| local.missed_echo = Some(now));
        }
        // What cannot be sent is as unanswered as what is lost.
        let _ = self.socket.send_to(&ask.encode(), target.address.as_str()).await;
    }

    /// Asks the other standbys while the stream is silent, and notes which of them answer.
    async fn hail(&self, peers: &mut Peers) {
        let others = self.others();
        let enough = questions_in(self.worker.spec().silent_after);
        peers.retain(|peer, questions| others.contains_key(peer) && *questions < enough);
        let hears: BTreeSet<MemberName> = peers.keys().cloned().collect();
        if self.worker.local().hears != hears {
            self.worker.update(|local| local.hears = hears);
        }
        let hail = Packet::Hail { cluster: self.worker.place.cluster.clone() }.encode();
        for (peer, address) in others {
            if let Some(questions) = peers.get_mut(&peer) {
                *questions += 1;
            }
            // What cannot be sent is as unanswered as what is lost.
            let _ = self.socket.send_to(&hail, address.as_str()).await;
        }
    }

    async fn take(
        &self,
        bytes: &[u8],
        from: SocketAddr,
        (unanswered, peers): (&mut Unanswered, &mut Peers),
    ) {
        let Some(packet) = Packet::decode(bytes) else { return };
        let own = &self.worker.place;
        match packet {
            Packet::Ask { cluster, epoch } if cluster == own.cluster && self.serves(epoch) => {
                let here = Packet::Here { cluster, epoch, member: own.member.clone() };
                let _ = self.socket.send_to(&here.encode(), from).await;
            }
            Packet::Hail { cluster } if cluster == own.cluster && self.could_follow() => {
                let hailed = Packet::Hailed { cluster, member: own.member.clone() };
                let _ = self.socket.send_to(&hailed.encode(), from).await;
            }
            Packet::Hailed { cluster, member } if cluster == own.cluster => {
                peers.insert(member, 0);
            }
            Packet::Here { cluster, epoch, member } if cluster == own.cluster => {
                let asked = unanswered.target.as_ref();
                if asked.is_some_and(|t| t.epoch == epoch && t.primary == member) {
                    unanswered.questions = 0;
                }
            }
            Packet::Ask { .. }
            | Packet::Here { .. }
            | Packet::Hail { .. }
            | Packet::Hailed { .. } => {}
        }
    }

    /// Returns whom to ask: the open primary of the state, unless it is this member itself.
    fn target(&self) -> Option<Target> {
        let view = self.worker.view.borrow();
        let state = view.state.as_ref().filter(|s| s.is_open())?;
        let primary = state.primary.clone().filter(|p| *p != self.worker.place.member)?;
        // A report that is gone leaves the address: with its lease lapsed a primary may still be heard.
        let address = view.reports.get(&primary)?.http_address.clone();
        Some(Target { primary, epoch: state.epoch, address })
    }

    /// Returns the other standbys, with their addresses; nobody unless this is a standby whose stream is silent.
    fn others(&self) -> BTreeMap<MemberName, String> {
        let spec = self.worker.spec();
        let Some(target) = self.target().filter(|_| self.stream_is_silent(spec.silent_after))
        else {
            return BTreeMap::new();
        };
        let view = self.worker.view.borrow();
        let others = view
            .reports
            .iter()
            .filter(|(name, _)| **name != target.primary && **name != self.worker.place.member);
        others.map(|(name, report)| (name.clone(), report.http_address.clone())).collect()
    }

    /// Returns whether this is a standby that misses nothing, and its PostgreSQL has answered just now.
    fn could_follow(&self) -> bool {
        let complete = self.worker.files().complete;
        let now = store::clock::now();
        let sql = self.sql.borrow();
        complete && sql.as_ref().is_some_and(|s| s.in_recovery && now.since(s.asked) < FRESH)
    }

    /// Returns whether this member is the open primary of `epoch` and its PostgreSQL has answered just now.
    fn serves(&self, epoch: Epoch) -> bool {
        let opened = self.worker.local().opened.is_some_and(|o| o.epoch == epoch);
        let now = store::clock::now();
        opened && self.sql.borrow().as_ref().is_some_and(|sql| now.since(sql.asked) < FRESH)
    }

    fn stream_is_silent(&self, silent_after: Duration) -> bool {
        let sql = self.sql.borrow();
        // PostgreSQL that does not answer here says nothing of the primary's.
        let Some(sql) = sql.as_ref().filter(|s| s.in_recovery) else { return false };
        sql.receiver.as_ref().is_none_or(|r| !r.streaming || r.silent_for >= silent_after)
    }
}

/// How many questions are asked in `time`.
fn questions_in(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(ASK_EVERY.as_millis())).unwrap_or(u32::MAX)
}
