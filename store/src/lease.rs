//! A lease of our own, with the local deadline counted from the send time.
//!
//! The one rule: what we believe never outlasts what the store was asked for. The deadline is the
//! moment before sending plus the time to live asked for, never the longer one that was granted.

use std::time::Duration;

use proto::Moment;

use crate::clock;
use crate::types::{LeaseId, Store, StoreError};

/// A lease that this process renews, with the moment until which it may rely on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnLease {
    id: LeaseId,
    ttl: Duration,
    granted: Duration,
    expires: Moment,
}

impl OwnLease {
    /// Asks the store for a lease of `ttl`.
    ///
    /// After an error there may be a lease that nobody renews; it holds no key and ends by itself.
    pub async fn grant(store: &dyn Store, ttl: Duration) -> Result<Self, StoreError> {
        // Before sending: the answer may have spent the whole time to live in a queue.
        let sent = clock::now();
        let (id, granted) = store.grant(ttl).await?;
        Ok(Self::granted_at(sent, id, ttl, granted))
    }

    /// Takes up a lease that an earlier process held. It counts as expired until it was renewed once.
    pub fn resume(id: LeaseId, ttl: Duration) -> Self {
        Self { id, ttl, granted: ttl, expires: Moment::default() }
    }

    /// Renews the lease once. After an error the old deadline stands; `LeaseExpired` is final.
    pub async fn renew(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let sent = clock::now();
        store.keep_alive(self.id).await?;
        self.renewed_at(sent);
        Ok(())
    }

    /// Returns the lease's identity in the store.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Returns the time to live that was asked for and that the deadline counts with.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns the time to live that the store granted: others may see our keys that long.
    pub fn granted(&self) -> Duration {
        self.granted
    }

    /// Returns the moment from which nothing may rest on this lease any more.
    pub fn expires(&self) -> Moment {
        self.expires
    }

    /// Returns whether the lease may still be relied on at `now`.
    pub fn is_live(&self, now: Moment) -> bool {
        now < self.expires
    }

    fn granted_at(sent: Moment, id: LeaseId, ttl: Duration, granted: Duration) -> Self {
        // A store that grants less than was asked must be believed too.
        let ttl = ttl.min(granted);
        Self { id, ttl, granted, expires: sent + ttl }
    }

    /// A late answer never shortens the deadline that a later request has won.
    fn renewed_at(&mut self, sent: Moment) {
        self.expires = self.expires.max(sent + self.ttl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    const TTL: Duration = Duration::from_secs(4);

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    fn lease_sent_at(seconds: u64, granted: Duration) -> OwnLease {
        OwnLease::granted_at(at(seconds), LeaseId(1), TTL, granted)
    }

    #[test]
    fn deadline_counts_from_the_send_time_with_the_time_asked_for() {
        let lease = lease_sent_at(100, Duration::from_secs(9));
        assert_eq!(lease.expires(), at(104));
        assert_eq!(lease.granted(), Duration::from_secs(9));
        assert!(lease.is_live(at(103)));
        assert!(!lease.is_live(at(104)), "at the deadline it is over");
    }

    #[test]
    fn deadline_believes_a_store_that_grants_less_than_was_asked() {
        assert_eq!(lease_sent_at(100, Duration::from_secs(3)).expires(), at(103));
    }

    #[test]
    fn renewal_counts_from_when_it_was_sent_and_not_from_the_answer() {
        let mut lease = lease_sent_at(100, TTL);
        lease.renewed_at(at(101));
        assert_eq!(lease.expires(), at(105));
    }

    #[test]
    fn resumed_lease_is_expired_until_it_is_renewed() {
        let mut lease = OwnLease::resume(LeaseId(7), TTL);
        assert!(!lease.is_live(at(1)));
        lease.renewed_at(at(100));
        assert_eq!(lease.expires(), at(104));
    }

    #[tokio::test]
    async fn failed_renewal_keeps_the_old_deadline_and_tells_of_the_end() {
        let store = MemoryStore::new();
        let before = clock::now();
        let mut lease = OwnLease::grant(&store, TTL).await.unwrap();
        let after = clock::now();
        assert!(before + TTL <= lease.expires() && lease.expires() <= after + TTL);
        let deadline = lease.expires();
        store.advance(TTL);
        let renewed = lease.renew(&store).await;
        assert!(matches!(renewed, Err(StoreError::LeaseExpired)), "{renewed:?}");
        assert_eq!(lease.expires(), deadline);
    }

    #[tokio::test]
    async fn lease_asked_for_below_the_shortest_is_believed_only_as_long_as_asked() {
        let asked = Duration::from_secs(1);
        let lease = OwnLease::grant(&MemoryStore::new(), asked).await.unwrap();
        assert_eq!(lease.granted(), Duration::from_secs(2));
        assert_eq!(lease.ttl(), asked);
        assert!(lease.expires() <= clock::now() + asked);
    }
}
