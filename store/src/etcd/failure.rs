//! What an error of etcd-client means for a request: whether it can have been applied.
//!
//! The one rule: in doubt it may have been applied.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use crate::types::StoreError;

/// Why one try at one endpoint brought no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no connection to send it on.
    Unreachable(String),
    /// etcd turned it away before looking at it.
    NotApplied(String),
    /// It was sent and not answered: applied or not.
    Unanswered(String),
    /// etcd answered; asking again brings the same.
    Answer(StoreError),
}

impl Failure {
    /// Returns whether asking another endpoint is useless.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Failure::Unreachable(_) | Failure::NotApplied(_) | Failure::Unanswered(_) => false,
            Failure::Answer(_) => true,
        }
    }

    /// Returns whether there was no connection.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Failure::Unreachable(_))
    }

    /// Adds the endpoint to the text.
    pub(super) fn at(self, url: &str) -> Self {
        match self {
            Failure::Unreachable(why) => Failure::Unreachable(format!("etcd at {url}: {why}")),
            Failure::NotApplied(why) => Failure::NotApplied(format!("etcd at {url}: {why}")),
            Failure::Unanswered(why) => Failure::Unanswered(format!("etcd at {url}: {why}")),
            Failure::Answer(error) => Failure::Answer(error),
        }
    }

    /// What it means where nothing can have changed.
    pub(super) fn of_a_read(self) -> StoreError {
        match self {
            Failure::Unreachable(why) | Failure::NotApplied(why) | Failure::Unanswered(why) => {
                StoreError::Unavailable(why)
            }
            Failure::Answer(error) => error,
        }
    }

    /// What it means where something may have changed.
    pub(super) fn of_a_write(self) -> StoreError {
        match self {
            Failure::Unreachable(why) | Failure::NotApplied(why) => StoreError::Unavailable(why),
            Failure::Unanswered(why) => StoreError::Unknown(why),
            Failure::Answer(error) => error,
        }
    }

    /// An answer without the header that every answer of etcd has.
    pub(super) fn headless() -> Self {
        Failure::Unanswered("answer without a header".to_owned())
    }
}

/// Sorts an error of etcd-client.
pub(super) fn classify(error: Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => classify_status(&status),
        Error::LeaseKeepAliveError(why) if why == "lease not found" => {
            Failure::Answer(StoreError::LeaseExpired)
        }
        Error::InvalidArgs(_) | Error::InvalidUri(_) => {
            Failure::Answer(StoreError::Refused(error.to_string()))
        }
        other => Failure::Unanswered(other.to_string()),
    }
}

fn classify_status(status: &Status) -> Failure {
    let said = status.message();
    match status.code() {
        Code::Unavailable if never_connected(status) => Failure::Unreachable(cause_of(status)),
        // Said by the member that was asked, before it proposes anything.
        Code::Unavailable if said == "etcdserver: no leader" => {
            Failure::NotApplied("no leader; a majority of its members must be up".to_owned())
        }
        Code::ResourceExhausted if said == "etcdserver: too many requests" => {
            Failure::NotApplied(said.to_owned())
        }
        Code::NotFound if said.contains("lease not found") => {
            Failure::Answer(StoreError::LeaseExpired)
        }
        Code::ResourceExhausted if said.contains("database space exceeded") => {
            refused(format!("{said}; compact and defragment etcd, then `etcdctl alarm disarm`"))
        }
        Code::ResourceExhausted
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::NotFound
        | Code::AlreadyExists => refused(said.to_owned()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Failure::Unanswered(cause_of(status)),
    }
}

fn refused(why: String) -> Failure {
    Failure::Answer(StoreError::Refused(why))
}

/// Returns whether the TCP connection could not be made, so that nothing was sent.
fn never_connected(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<ConnectError>())
}

/// tonic's own text for a connection that broke is "transport error"; the innermost cause says more.
fn cause_of(status: &Status) -> String {
    match causes(status).last() {
        Some(cause) => format!("{} ({cause})", status.message()),
        None => status.message().to_owned(),
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}
