//! Turns an etcd watch into a channel of batches, one for each answer of etcd.
//!
//! The one rule: no gap and no silence. Whatever breaks the watch closes the channel, also a reader
//! that is too slow and an etcd that has stopped answering without closing the connection, the watch or another call.

use std::time::Duration;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::entry_of;
use super::failure::Failure;
use super::members::Member;
use crate::types::{StoreError, Watch, WatchEvent};

/// A reader that is this many batches behind must read a snapshot instead.
const CAPACITY: usize = 1024;

/// How often etcd is asked how far the watch is. A question and an answer of some bytes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Two questions unanswered, and a third one due. A false alarm costs a read; waiting longer costs
/// its reader that much on top of every outage.
const LONGEST_SILENCE: Duration = Duration::from_secs(3);

/// Opens a watch and returns once etcd has confirmed it.
///
/// etcd refuses a watch in its stream and not by a status, and says "permission denied" also of a login that has ended,
/// which etcd-client does not renew then. A read tells which it is: it is refused too, or it renews the login.
pub(super) async fn open(
    mut member: Member,
    prefix: String,
    from_revision: i64,
) -> Result<Watch, Failure> {
    match try_open(&mut member, &prefix, from_revision).await {
        Err(Failure::Denied | Failure::NotLoggedIn(_)) => {
            let least = GetOptions::new().with_prefix().with_count_only();
            member.kv.get(prefix.as_str(), Some(least)).await?;
            try_open(&mut member, &prefix, from_revision).await
        }
        result => result,
    }
}

async fn try_open(member: &mut Member, prefix: &str, from_revision: i64) -> Result<Watch, Failure> {
    let options = WatchOptions::new().with_prefix().with_start_revision(from_revision.max(0));
    let mut stream = member.watch.watch(prefix, Some(options)).await?;
    match stream.message().await? {
        Some(answer) if answer.canceled() => Err(match answer.cancel_reason() {
            why if why.contains("permission denied") => Failure::Denied,
            why if why.contains("invalid auth token") => Failure::NotLoggedIn(why.to_owned()),
            why => Failure::Answer(StoreError::Refused(format!("watch of {prefix}: {why}"))),
        }),
        Some(_) => {
            let (sender, events) = mpsc::channel(CAPACITY);
            let origin = Origin {
                prefix: prefix.to_owned(),
                url: member.url.clone(),
                turn: member.turn,
                in_use: member.in_use.clone(),
            };
            tokio::spawn(forward(stream, sender, origin));
            Ok(Watch { events })
        }
        None => Err(Failure::Unanswered("watch stream ended".to_owned())),
    }
}

/// What is watched, and the connection on which.
struct Origin {
    prefix: String,
    url: String,
    turn: u64,
    in_use: watch::Receiver<u64>,
}

impl Origin {
    /// Waits until the connection is left: what did not answer one call is not waited for by a watch.
    async fn left(&mut self) {
        let turn = self.turn;
        if self.in_use.wait_for(|in_use| *in_use > turn).await.is_err() {
            // The store is gone, and nobody leaves a connection any more.
            std::future::pending().await
        }
    }
}

/// Delivers until something breaks; leaving drops the sender, which closes the channel.
async fn forward(
    mut stream: WatchStream,
    sender: mpsc::Sender<Vec<WatchEvent>>,
    mut origin: Origin,
) {
    let mut questions = interval(PROGRESS_INTERVAL);
    questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let why = loop {
        tokio::select! {
            answer = stream.message() => {
                heard = Instant::now();
                match answer {
                    Ok(Some(answer)) => {
                        if let Err(why) = deliver(&answer, &sender) {
                            break why;
                        }
                    }
                    Ok(None) => break "etcd ended it".to_owned(),
                    Err(error) => break error.to_string(),
                }
            }
            _ = questions.tick() => {
                if let Err(error) = stream.request_progress().await {
                    break error.to_string();
                }
            }
            () = sleep_until(heard + LONGEST_SILENCE) => break "no answer in 3 s".to_owned(),
            () = origin.left() => break "another call had no answer there".to_owned(),
            () = sender.closed() => return,
        }
    };
    tracing::info!(prefix = %origin.prefix, url = %origin.url, %why, "watch closed");
}

fn deliver(answer: &WatchResponse, sender: &mpsc::Sender<Vec<WatchEvent>>) -> Result<(), String> {
    if answer.canceled() {
        return Err(match answer.compact_revision() {
            0 => format!("cancelled: {}", answer.cancel_reason()),
            oldest => format!("history before revision {oldest} is compacted"),
        });
    }
    let batch: Vec<WatchEvent> = answer.events().iter().filter_map(event_of).collect();
    if batch.is_empty() {
        return Ok(());
    }
    sender.try_send(batch).map_err(|_| "its reader is too slow or gone".to_owned())
}

fn event_of(event: &etcd_client::Event) -> Option<WatchEvent> {
    let pair = event.kv()?;
    let (key, entry) = entry_of(pair)?;
    Some(match event.event_type() {
        EventType::Put => WatchEvent::Put { key, entry },
        EventType::Delete => WatchEvent::Delete { key, revision: entry.mod_revision },
    })
}
