//! What an error of etcd-client means for a request: whether it can have been applied.
//!
//! The one rule: in doubt it may have been applied.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use super::access::EtcdAccess;
use super::advice;
use crate::types::StoreError;

/// Why one try at one endpoint brought no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no connection to send it on.
    Unreachable(String),
    /// etcd turned it away before looking at it.
    NotApplied(String),
    /// etcd does not know our login any more, and turned the request away: a new connection logs in anew.
    NotLoggedIn(String),
    /// A login was tried and etcd asks for none.
    AuthenticationIsOff,
    /// The user has no right to some key of the request.
    Denied,
    /// It was sent and not answered: applied or not.
    Unanswered(String),
    /// etcd answered; asking again brings the same.
    Answer(StoreError),
}

impl Failure {
    /// Returns whether asking another endpoint is useless.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Failure::Unreachable(_)
            | Failure::NotApplied(_)
            | Failure::NotLoggedIn(_)
            | Failure::AuthenticationIsOff
            | Failure::Unanswered(_) => false,
            Failure::Denied | Failure::Answer(_) => true,
        }
    }

    /// Returns whether there was no connection.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Failure::Unreachable(_))
    }

    /// Returns whether the request was certainly not applied, so that another endpoint may be given it.
    pub(super) fn is_not_applied(&self) -> bool {
        match self {
            Failure::Unreachable(_)
            | Failure::NotApplied(_)
            | Failure::NotLoggedIn(_)
            | Failure::AuthenticationIsOff => true,
            Failure::Denied | Failure::Unanswered(_) | Failure::Answer(_) => false,
        }
    }

    /// Adds the endpoint to the text.
    pub(super) fn at(self, url: &str) -> Self {
        let at = |why: String| format!("etcd at {url}: {why}");
        match self {
            Failure::Unreachable(why) => Failure::Unreachable(at(why)),
            Failure::NotApplied(why) => Failure::NotApplied(at(why)),
            Failure::NotLoggedIn(why) => Failure::NotLoggedIn(at(why)),
            Failure::Unanswered(why) => Failure::Unanswered(at(why)),
            other @ (Failure::AuthenticationIsOff | Failure::Denied | Failure::Answer(_)) => other,
        }
    }

    /// What a failure to connect or to log in means: nothing was asked yet, and a password that etcd refuses is refused
    /// again.
    pub(super) fn before_the_request(self, access: &EtcdAccess) -> Self {
        match self {
            Failure::NotLoggedIn(why) => Failure::Answer(StoreError::Refused(format!(
                "{why}, for {}: check --etcd-user and --etcd-password-file",
                access.whom()
            ))),
            Failure::Unanswered(why) => Failure::NotApplied(why),
            other => other,
        }
    }

    /// Without a login there is none to be renewed.
    pub(super) fn unless_logged_in(self, access: &EtcdAccess) -> Self {
        match self {
            Failure::NotLoggedIn(why) if access.login.is_none() => {
                Failure::Answer(StoreError::Refused(format!(
                    "{why}: etcd asks for a user; give --etcd-user and --etcd-password-file, or a \
                     certificate that names one"
                )))
            }
            other => other,
        }
    }

    /// Adds what to do to a text about certificates.
    pub(super) fn advised(self, access: &EtcdAccess) -> Self {
        self.with(|why| advice::about(why, access))
    }

    /// The same for the first connection of all.
    pub(super) fn advised_at_start(self, access: &EtcdAccess) -> Self {
        self.with(|why| advice::about_the_first(why, access))
    }

    fn with(self, remedy: impl Fn(&str) -> Option<String>) -> Self {
        let advised = |why: String| match remedy(&why) {
            Some(remedy) => format!("{why}: {remedy}"),
            None => why,
        };
        match self {
            Failure::Unreachable(why) => Failure::Unreachable(advised(why)),
            Failure::NotApplied(why) => Failure::NotApplied(advised(why)),
            Failure::Unanswered(why) => Failure::Unanswered(advised(why)),
            other @ (Failure::NotLoggedIn(_)
            | Failure::AuthenticationIsOff
            | Failure::Denied
            | Failure::Answer(_)) => other,
        }
    }

    /// What was said, for people.
    pub(super) fn text(self) -> String {
        match self {
            Failure::Unreachable(why)
            | Failure::NotApplied(why)
            | Failure::NotLoggedIn(why)
            | Failure::Unanswered(why) => why,
            Failure::AuthenticationIsOff => "etcd does not ask for users".to_owned(),
            Failure::Denied => "permission denied".to_owned(),
            Failure::Answer(error) => error.to_string(),
        }
    }

    /// What it means where nothing can have changed. `keys`: what was asked for.
    pub(super) fn of_a_read(self, access: &EtcdAccess, keys: &str) -> StoreError {
        match self {
            Failure::Answer(error) => error,
            Failure::Denied => advice::denied(access, "read", keys),
            other => StoreError::Unavailable(other.text()),
        }
    }

    /// What it means where something may have changed. `keys`: what was to be changed.
    pub(super) fn of_a_write(self, access: &EtcdAccess, keys: &str) -> StoreError {
        match self {
            Failure::Answer(error) => error,
            Failure::Denied => advice::denied(access, "write", keys),
            Failure::Unanswered(why) => StoreError::Unknown(why),
            other => StoreError::Unavailable(other.text()),
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
        // Nothing but certificates that cannot be used brings this one.
        Error::TransportError(error) => Failure::Unreachable(innermost(&error)),
        other => Failure::Unanswered(other.to_string()),
    }
}

/// What etcd says of a token that has ended, that it never heard of, that is missing, that was given before rights
/// changed; and of a password that was changed since.
const NOT_LOGGED_IN: [&str; 4] = [
    "invalid auth token",
    "user name is empty",
    "revision of auth store is old",
    "authentication failed",
];

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
        // Said before anything is proposed, or, of an old revision, when the request is turned away unapplied.
        _ if NOT_LOGGED_IN.iter().any(|text| said.contains(text)) => {
            Failure::NotLoggedIn(said.trim_start_matches("etcdserver: ").to_owned())
        }
        _ if said.contains("authentication is not enabled") => Failure::AuthenticationIsOff,
        Code::PermissionDenied => Failure::Denied,
        Code::NotFound if said.contains("lease not found") => {
            Failure::Answer(StoreError::LeaseExpired)
        }
        Code::ResourceExhausted if said.contains("database space exceeded") => {
            refused(format!("{said}; compact and defragment etcd, then `etcdctl alarm disarm`"))
        }
        Code::ResourceExhausted
        | Code::InvalidArgument
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

fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(cause) = inner.source() {
        inner = cause;
    }
    inner.to_string()
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}
