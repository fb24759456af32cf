//! One open keep-alive stream per lease, so that a renewal is a message and not a new stream.
//!
//! The one rule: an answer counts only for the renewal that it answers. A stream whose answer did not
//! come in time is thrown away, because the late answer would be taken for the next one's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};

use super::failure::Failure;
use super::members::Member;
use crate::types::{LeaseId, StoreError};

/// The streams that wait for their next renewal.
#[derive(Default)]
pub(super) struct Renewals {
    idle: Mutex<HashMap<LeaseId, Stream>>,
}

struct Stream {
    /// The connection it runs on; after a move to another endpoint it is of no use.
    turn: u64,
    requests: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Renewals {
    /// Renews once. The stream is taken out meanwhile, so a call that is dropped drops it too.
    pub(super) async fn renew(&self, mut member: Member, lease: LeaseId) -> Result<(), Failure> {
        let open = self.idle().remove(&lease).filter(|stream| stream.turn == member.turn);
        let stream = match open {
            Some(mut stream) => {
                stream.renew().await?;
                stream
            }
            None => {
                let (requests, answers) = member.lease.keep_alive(lease.0).await?;
                Stream { turn: member.turn, requests, answers }
            }
        };
        self.idle().insert(lease, stream);
        Ok(())
    }

    /// Closes the stream of a lease that is given up.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.idle().remove(&lease);
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<LeaseId, Stream>> {
        // The map is whole after a panic too: nothing but insert and remove happens under the lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    async fn renew(&mut self) -> Result<(), Failure> {
        self.requests.keep_alive().await?;
        match self.answers.message().await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            Some(_) => Err(Failure::Answer(StoreError::LeaseExpired)),
            None => Err(Failure::Unanswered("keep-alive stream ended".to_owned())),
        }
    }
}
