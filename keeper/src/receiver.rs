//! Wakes a postmaster that has yet to start a walreceiver.
//!
//! Up to PostgreSQL 15 the postmaster sleeps in `select` with a request that it has already noted: when the signals that tell
//! it of the request, and of the end of the receiver before, come while it is busy with a new connection, it takes them just
//! before it goes to sleep, and starts nobody before something else wakes it: after 15 s, once in 600 changes of
//! `primary_conninfo` with two connections meanwhile, and none of 600 lasted longer than a second with this. A connection
//! wakes it.
//!
//! The one rule: this is only ever a connection that is closed again at once; nothing is changed and nothing is asked.

use std::sync::Arc;
use std::time::Duration;

use proto::Moment;
use store::clock;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::facts::Process;
use crate::postgres::probe::SqlFacts;
use crate::worker::Worker;

/// A request is met within milliseconds, and one that finds no primary is made again after `wal_retrieve_retry_interval`,
/// a tenth of a second at most: this long without any shows that none is being met.
const MISSING_FOR: Duration = Duration::from_millis(250);

/// Each time twice as seldom, until it is once a second.
const SELDOM: u32 = 2;

/// As often as the server is asked for its facts when nothing is under way.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until `stop`.
pub async fn wake_for_receivers(
    worker: Arc<Worker>,
    sql: watch::Receiver<Option<SqlFacts>>,
    stop: CancellationToken,
) {
    let looking = async {
        let mut missing = Missing::default();
        loop {
            sleep(LOOK_EVERY).await;
            let is_missing = follows(&worker) && has_no_receiver(sql.borrow().as_ref());
            if missing.sees(is_missing, clock::now()) {
                tracing::debug!("no walreceiver: the postmaster is woken");
                worker.door.ring().await;
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = stop.cancelled() => {}
    }
}

/// Returns whether this member runs and is to stream from somebody.
fn follows(worker: &Worker) -> bool {
    matches!(worker.local().process, Process::Running { .. })
        && worker.settings().upstream.is_some()
}

fn has_no_receiver(sql: Option<&SqlFacts>) -> bool {
    sql.is_some_and(|facts| facts.in_recovery && facts.receiver.is_none())
}

/// Since when the receiver has been missing, or since when the postmaster was woken for it, and how often it was.
#[derive(Debug, Default)]
struct Missing {
    since: Option<Moment>,
    woken: u32,
}

impl Missing {
    /// Returns whether it is time to wake the postmaster. Where that does not help, because there is no primary, it is done
    /// less often: with `log_connections` each time is a line in PostgreSQL's log.
    fn sees(&mut self, is_missing: bool, now: Moment) -> bool {
        if !is_missing {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let is_time = now.since(since) >= MISSING_FOR * (1 << self.woken.min(SELDOM));
        if is_time {
            (self.since, self.woken) = (Some(now), self.woken + 1);
        }
        is_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::since_boot(Duration::from_millis(ms))
    }

    #[test]
    fn the_postmaster_is_woken_when_a_receiver_is_missing_for_long_and_then_less_often() {
        let mut missing = Missing::default();
        let woken = (0..40).filter(|tenth| missing.sees(true, at(100 * tenth))).collect::<Vec<_>>();
        assert_eq!(woken, [3, 8, 18, 28, 38]);
    }

    #[test]
    fn a_receiver_that_comes_and_goes_wakes_nobody() {
        let mut missing = Missing::default();
        assert!((0..50).all(|tenth| !missing.sees(tenth % 4 != 0, at(100 * tenth))));
    }
}
