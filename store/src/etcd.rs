//! Real etcd, through etcd-client.
//!
//! The one rule: every call ends in time and says truthfully what is known. A write that may have
//! been applied is `Unknown`, is sent once, and is never tried again by itself.

mod access;
mod advice;
mod failure;
mod keep_alive;
mod members;
mod watching;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn as EtcdTxn,
    TxnOp,
};
use tokio::time::{Instant, sleep, timeout_at};

pub use self::access::{ClientCertificate, EtcdAccess, Login};
use self::failure::Failure;
use self::keep_alive::Renewals;
use self::members::{Member, Members};
use crate::memory::rules::whole_seconds;
use crate::types::{
    Entry, Guard, LeaseId, Operation, Snapshot, Store, StoreError, Txn, TxnOutcome, Watch,
};

/// How long any call may take: half of the default lease, so that one that hangs leaves time for
/// another. A new leader of etcd took 1.0 to 1.3 s to answer with its default settings (measured).
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// Between two rounds over the endpoints: an election takes a second, an answer a millisecond.
const LAP_PAUSE: Duration = Duration::from_millis(50);

/// A connection to one etcd cluster. It moves to another endpoint by itself when one does not answer.
pub struct EtcdStore {
    members: Members,
    renewals: Renewals,
}

impl EtcdStore {
    /// Connects to the first endpoint of `access` that answers a linearizable read. Fails within 5 s, naming every
    /// endpoint and what was wrong with it.
    pub async fn connect(access: impl Into<EtcdAccess>) -> Result<Self, StoreError> {
        Ok(Self { members: Members::connect(access.into()).await?, renewals: Renewals::default() })
    }

    /// The same, and demands the right to read all that is below each of `prefixes`: who may not read it would wait for
    /// ever for what it is not shown.
    pub async fn connect_to_read(
        access: impl Into<EtcdAccess>,
        prefixes: &[String],
    ) -> Result<Self, StoreError> {
        let store = Self::connect(access).await?;
        for prefix in prefixes {
            // Any other failure passes, and the caller's own reads meet it.
            if let Err(refused @ StoreError::Refused(_)) = store.read(prefix).await {
                return Err(refused);
            }
        }
        Ok(store)
    }

    /// Calls one endpoint after the other until one answers or time is up, so that a new election in
    /// etcd is waited for; but not where every endpoint is out of reach. Only for calls that may be
    /// repeated.
    async fn repeat<T, F>(&self, call: impl Fn(Member) -> F + Send) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let deadline = Instant::now() + CALL_DEADLINE;
        let share = CALL_DEADLINE / self.members.count();
        let (mut tries, mut unreachable) = (0, 0);
        loop {
            let limit = deadline.min(Instant::now() + share);
            let failure = match self.once(limit, &call).await {
                Err(failure) if !failure.is_final() => failure,
                result => return result,
            };
            tries += 1;
            unreachable = if failure.is_unreachable() { unreachable + 1 } else { 0 };
            if unreachable >= self.lap() || Instant::now() + LAP_PAUSE >= deadline {
                return Err(failure);
            }
            if tries % self.lap() == 0 {
                sleep(LAP_PAUSE).await;
            }
        }
    }

    /// Calls once; only a request that was certainly not applied is given to another endpoint.
    async fn send_once<T, F>(&self, call: impl Fn(Member) -> F + Send) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let deadline = Instant::now() + CALL_DEADLINE;
        for _ in 1..self.lap() {
            match self.once(deadline, &call).await {
                Err(failure) if failure.is_not_applied() => {}
                result => return result,
            }
        }
        self.once(deadline, &call).await
    }

    /// Every endpoint once, a single one twice: its connection may have died unnoticed.
    fn lap(&self) -> u32 {
        self.members.count().max(2)
    }

    async fn once<T, F>(&self, deadline: Instant, call: impl Fn(Member) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let connection = self.members.current().await;
        let result = match connection.open(deadline).await {
            Ok(member) => {
                let unasked = member.unasked;
                match timeout_at(deadline, call(member)).await {
                    // It asks by now, and took us for whom the certificate names.
                    Ok(Err(Failure::Denied)) if unasked => {
                        Err(Failure::NotLoggedIn("permission denied".to_owned()))
                    }
                    Ok(result) => result,
                    Err(_) => Err(Failure::Unanswered("no answer in time".to_owned())),
                }
            }
            Err(failure) => Err(failure),
        };
        let access = self.members.access();
        match result.map_err(|failure| failure.unless_logged_in(access)) {
            Err(failure) if !failure.is_final() => {
                self.members.leave(connection.turn).await;
                Err(failure.advised(access).at(&connection.url))
            }
            result => {
                self.members.answered(&connection.url);
                result
            }
        }
    }

    fn read_failed(&self, failure: Failure, keys: &str) -> StoreError {
        failure.of_a_read(self.members.access(), keys)
    }

    fn write_failed(&self, failure: Failure, keys: &str) -> StoreError {
        failure.of_a_write(self.members.access(), keys)
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").field("members", &self.members).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Store for EtcdStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.repeat(|member| read(member, prefix.to_owned()))
            .await
            .map_err(|failure| self.read_failed(failure, prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let request = request_of(&txn);
        self.send_once(|member| commit(member, request.clone()))
            .await
            .map_err(|failure| self.write_failed(failure, &advice::keys_of(&txn)))
    }

    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        let seconds = i64::try_from(whole_seconds(ttl)).unwrap_or(i64::MAX);
        self.send_once(|member| grant(member, seconds))
            .await
            .map_err(|failure| self.write_failed(failure, "a lease"))
    }

    /// An isolated former leader of etcd can answer for about its election timeout (1 s) without
    /// asking a majority; the lease then ends that much before our deadline. Guards do not care.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.repeat(|member| self.renewals.renew(member, lease))
            .await
            .map_err(|failure| self.write_failed(failure, "a lease"))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.renewals.forget(lease);
        let revoked = self.repeat(|member| revoke(member, lease)).await;
        match revoked.map_err(|failure| self.write_failed(failure, "the keys of a lease")) {
            Err(StoreError::LeaseExpired) => Ok(()),
            result => result,
        }
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StoreError> {
        self.repeat(|member| watching::open(member, prefix.to_owned(), from_revision))
            .await
            .map_err(|failure| self.read_failed(failure, prefix))
    }
}

async fn read(mut member: Member, prefix: String) -> Result<Snapshot, Failure> {
    let options = GetOptions::new().with_prefix();
    let answer = member.kv.get(prefix, Some(options)).await?;
    let header = answer.header().ok_or_else(Failure::headless)?;
    Ok(Snapshot {
        revision: header.revision(),
        cluster_id: format!("{:x}", header.cluster_id()),
        entries: answer.kvs().iter().filter_map(entry_of).collect(),
    })
}

async fn commit(mut member: Member, request: EtcdTxn) -> Result<TxnOutcome, Failure> {
    let answer = member.kv.txn(request).await?;
    if !answer.succeeded() {
        return Ok(TxnOutcome::Conflict);
    }
    let revision = answer.header().ok_or_else(Failure::headless)?.revision();
    Ok(TxnOutcome::Committed { revision })
}

async fn grant(mut member: Member, seconds: i64) -> Result<(LeaseId, Duration), Failure> {
    let answer = member.lease.grant(seconds, None::<LeaseGrantOptions>).await?;
    let granted = u64::try_from(answer.ttl()).unwrap_or(0);
    Ok((LeaseId(answer.id()), Duration::from_secs(granted)))
}

async fn revoke(mut member: Member, lease: LeaseId) -> Result<(), Failure> {
    member.lease.revoke(lease.0).await?;
    Ok(())
}

/// A key that is not UTF-8 is not one of ours.
fn entry_of(pair: &KeyValue) -> Option<(String, Entry)> {
    let key = pair.key_str().ok()?.to_owned();
    let entry = Entry {
        value: pair.value().to_vec(),
        create_revision: pair.create_revision(),
        mod_revision: pair.mod_revision(),
        lease: (pair.lease() != 0).then_some(LeaseId(pair.lease())),
    };
    Some((key, entry))
}

fn request_of(txn: &Txn) -> EtcdTxn {
    let compares: Vec<Compare> = txn.when.iter().map(compare_of).collect();
    let mut operations: Vec<TxnOp> = txn.then.iter().map(operation_of).collect();
    if operations.is_empty() {
        // etcd answers a transaction without operations from its own, perhaps old data. A read in it
        // makes the comparison linearizable; of a key that is compared, since rights to others may be missing.
        let key = txn.when.first().map_or("\0", Guard::key);
        operations.push(TxnOp::get(key, None));
    }
    EtcdTxn::new().when(compares).and_then(operations)
}

fn compare_of(guard: &Guard) -> Compare {
    match guard {
        Guard::Absent(key) => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        Guard::ModRevision(key, revision) => {
            Compare::mod_revision(key.as_str(), CompareOp::Equal, *revision)
        }
        Guard::CreateRevision(key, revision) => {
            Compare::create_revision(key.as_str(), CompareOp::Equal, *revision)
        }
        Guard::Lease(key, lease) => Compare::lease(key.as_str(), CompareOp::Equal, lease.0),
    }
}

fn operation_of(operation: &Operation) -> TxnOp {
    match operation {
        Operation::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.as_str(), value.clone(), options)
        }
        Operation::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        failure::classify(error)
    }
}
