//! What a keeper is started with, already checked: the command line, environment and file were read elsewhere.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use proto::drill::LiveFault;
use proto::{ClusterName, HostPort, MemberName};
use store::EtcdAccess;

use crate::postgres::tls::Tls;

/// One keeper's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub cluster: ClusterName,
    pub member: MemberName,
    /// Where etcd is, and as whom it is asked.
    pub etcd: EtcdAccess,
    pub data_dir: PathBuf,
    /// Member files, logs, sockets and configuration of this member, beside the data directory.
    pub state_dir: PathBuf,
    /// Where PostgreSQL listens and others connect.
    pub listen: HostPort,
    /// Where the keeper serves HTTP and gRPC.
    pub http: HostPort,
    /// Where PostgreSQL's programs are; found in the usual places where it is absent.
    pub postgres_bin: Option<PathBuf>,
    pub zone: Option<String>,
    /// Whether the fencer starts this keeper again should it die: not where a service manager does.
    pub restarted_by_fencer: bool,
    /// Whether a keeper that runs on this directory is asked to leave; otherwise it is an error that there is one.
    pub take_over: bool,
    /// How long a primary whose keeper is asked to stop may take to hand over; zero: it stops at once.
    pub hand_over_within: Duration,
    /// Being asked to stop means to leave PostgreSQL running for the next keeper, as SIGUSR2 always does.
    pub leave_postgres: bool,
    /// What no drill may break here.
    pub refused_drills: BTreeSet<LiveFault>,
    pub secrets: SecretsSource,
    /// How the PostgreSQL of other members is reached; `None`: as it speaks, and by our own connections in the clear.
    pub tls: Option<Tls>,
}

/// Where the passwords of the keeper's roles come from. All three are given, or none: then they are read from
/// the key `secrets` in etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretsSource {
    pub superuser: Option<PasswordSource>,
    pub replication: Option<PasswordSource>,
    pub rewind: Option<PasswordSource>,
}

impl SecretsSource {
    /// Returns whether nothing has to be read from etcd.
    pub fn are_given(&self) -> bool {
        self.superuser.is_some() && self.replication.is_some() && self.rewind.is_some()
    }
}

/// Where one password comes from; never from the command line, which everybody on the host can read.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// A file whose first line is the password.
    File(PathBuf),
    /// The value that the environment held.
    Env(String),
}

impl fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Env(_) => f.write_str("Env(not shown)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_from_the_environment_is_never_printed() {
        let source = SecretsSource {
            superuser: Some(PasswordSource::Env("s3cret".into())),
            ..Default::default()
        };
        assert!(!format!("{source:?}").contains("s3cret"));
    }
}
