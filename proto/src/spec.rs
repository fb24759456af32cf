//! ClusterSpec: what the operator wants. Unknown fields are errors; relations between settings are checked in
//! `ClusterSpec::check`, the one place for them.

mod drills;
mod reads;
mod rejoin;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::duration;
use crate::{Document, MemberName, PoolName};

pub use drills::{CanaryWhen, DrillSpec};
pub use reads::{ReadFallback, Reads};
pub use rejoin::{CopyFrom, CrashRecovery, RejoinSpec, Replaced};

/// The operator's wishes for one cluster, stored under `spec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSpec {
    pub synchronous: Synchronous,
    pub durability: Durability,
    /// How long a member's key outlives its last renewal. The floor is 2 s, what etcd grants by default.
    #[serde(with = "duration")]
    pub lease_ttl: Duration,
    /// How long a fence may take; a primary stops this long before its lease can lapse.
    #[serde(with = "duration")]
    pub fence_time: Duration,
    /// How long a primary may be unheard, by echo and by stream, before its voters call it silent.
    #[serde(with = "duration")]
    pub silent_after: Duration,
    /// How long a primary may commit nothing on its own disk, or accept no session, before it is replaced though it
    /// answers on the sessions it has.
    #[serde(with = "duration")]
    pub unresponsive_after: Duration,
    /// How long a primary whose voters still hear it is left alone after its lease lapsed.
    #[serde(with = "duration")]
    pub isolation_grace: Duration,
    /// How long a choice waits for live members that have not sealed, once a base exists.
    #[serde(with = "duration")]
    pub seal_patience: Duration,
    /// How long a promotion may stand still before the next epoch is sealed.
    #[serde(with = "duration")]
    pub promote_patience: Duration,
    /// How long a change of the voters waits for other members to settle.
    #[serde(with = "duration")]
    pub settle: Duration,
    /// The member that creates the cluster; the first by name where it is absent.
    pub founder: Option<MemberName>,
    pub initdb: Initdb,
    pub postgres: PostgresSpec,
    /// Not written where nobody asked for something else, so that older programs read the spec.
    #[serde(skip_serializing_if = "Reads::is_default")]
    pub reads: Reads,
    /// Likewise.
    #[serde(skip_serializing_if = "RejoinSpec::is_default")]
    pub rejoin: RejoinSpec,
    /// Likewise.
    #[serde(skip_serializing_if = "DrillSpec::is_default")]
    pub drills: DrillSpec,
    /// What particular members may become; a member that is absent here has the defaults.
    pub members: BTreeMap<MemberName, MemberSpec>,
}

/// Who acknowledges commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Synchronous {
    pub mode: SynchronousMode,
    /// How many standbys must hold a commit before it is acknowledged; at least 1.
    pub count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SynchronousMode {
    /// Any `count` of all complete members.
    Quorum,
    /// The best `count` of them, and all of these: healthiest, in another zone than the primary, by priority, by name.
    Priority,
}

/// What happens when no voter is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Commits wait until a voter is back.
    #[default]
    Strict,
    /// The primary acknowledges alone, and nobody can be promoted over it, until a voter has caught up and joined.
    Available,
}

/// How the founder creates the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Initdb {
    pub encoding: String,
    pub locale: String,
    /// The WAL segment size in megabytes: a power of two from 1 to 1024.
    pub wal_segment_size_mb: u32,
}

/// PostgreSQL settings that all members share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSpec {
    /// Settings by name; those that pgdeputy owns are refused.
    pub parameters: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf` for clients, in order; their method must be `scram-sha-256`, `cert` or `reject`.
    pub pg_hba: Vec<String>,
}

/// The limits of one member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemberSpec {
    pub promote: Permission,
    pub vote: Permission,
    /// The greater one is preferred among members that hold equally much; 0 by default.
    pub priority: u8,
    /// The pool whose reads this member gets, on a port of its own; it gets none of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    #[default]
    Allowed,
    Never,
}

/// The default of `unresponsive_after`: a disk under a checkpoint may take seconds for one sync, and five questions fit
/// into it.
pub const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(10);

impl Document for ClusterSpec {
    const KIND: &'static str = "spec";
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::default(),
            durability: Durability::Strict,
            lease_ttl: Duration::from_secs(4),
            fence_time: Duration::from_millis(500),
            silent_after: Duration::from_secs(1),
            unresponsive_after: UNRESPONSIVE_AFTER,
            isolation_grace: Duration::from_secs(10),
            seal_patience: Duration::from_millis(20),
            promote_patience: Duration::from_secs(5),
            settle: Duration::from_secs(1),
            founder: None,
            initdb: Initdb::default(),
            postgres: PostgresSpec::default(),
            reads: Reads::default(),
            rejoin: RejoinSpec::default(),
            drills: DrillSpec::default(),
            members: BTreeMap::new(),
        }
    }
}

impl Default for Synchronous {
    fn default() -> Self {
        Self { mode: SynchronousMode::Quorum, count: 1 }
    }
}

impl Default for Initdb {
    fn default() -> Self {
        Self { encoding: "UTF8".into(), locale: "C.UTF-8".into(), wal_segment_size_mb: 16 }
    }
}

/// Settings that carry the promise, and those that the members' files and addresses decide: the keeper writes
/// them, and nobody else may.
pub const OWNED_SETTINGS: &[&str] = &[
    "allow_alter_system",
    "archive_cleanup_command",
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "max_replication_slots",
    "max_wal_senders",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_init_sync_method",
    "recovery_min_apply_delay",
    "recovery_target_timeline",
    "restart_after_crash",
    "restore_command",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
    "wal_receiver_status_interval",
    "wal_receiver_timeout",
    "wal_retrieve_retry_interval",
    "zero_damaged_pages",
];

/// A setting of the spec that cannot be, with the remedy in its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec: {0}")]
pub struct SpecError(pub String);

impl ClusterSpec {
    /// Returns what `member` may become.
    pub fn member(&self, member: &MemberName) -> MemberSpec {
        self.members.get(member).cloned().unwrap_or_default()
    }

    /// Returns whether commits are to wait until the standbys that acknowledge them have replayed them.
    pub fn waits_for_replay(&self) -> bool {
        self.postgres.parameters.get("synchronous_commit").is_some_and(|v| v == "remote_apply")
    }

    /// Checks all relations between settings.
    ///
    /// The rule on leases is that of two lost renewals: renewals go out every fifth of `lease_ttl`, and what is
    /// left after the fence must hold three of them.
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_timings()?;
        self.check_postgres()?;
        self.reads.check()?;
        self.rejoin.check()?;
        let refuse = |text: String| Err(SpecError(text));
        if self.synchronous.count == 0 {
            return refuse(
                "synchronous.count must be at least 1: with 0 an acknowledged commit could be lost"
                    .into(),
            );
        }
        let size = self.initdb.wal_segment_size_mb;
        if !size.is_power_of_two() || size > 1024 {
            return refuse(format!(
                "initdb.wal_segment_size_mb is {size}: use a power of two from 1 to 1024"
            ));
        }
        if let Some(founder) = &self.founder
            && self.member(founder).promote == Permission::Never
        {
            return refuse(format!(
                "founder {founder} has promote = never: choose another founder"
            ));
        }
        Ok(())
    }

    fn check_timings(&self) -> Result<(), SpecError> {
        let refuse = |text: String| Err(SpecError(text));
        let show = humantime::format_duration;
        let (ttl, fence) = (self.lease_ttl, self.fence_time);
        if ttl < Duration::from_secs(2) || ttl > Duration::from_secs(60) {
            return refuse(format!(
                "lease_ttl is {}: use 2s to 60s (etcd grants no less than 2s)",
                show(ttl)
            ));
        }
        if ttl.subsec_nanos() != 0 {
            return refuse(format!("lease_ttl is {}: etcd leases are whole seconds", show(ttl)));
        }
        if fence < Duration::from_millis(100) {
            return refuse(format!(
                "fence_time is {}: a fence takes up to 0.1 s, use at least 100ms",
                show(fence)
            ));
        }
        if ttl.saturating_sub(fence) < ttl * 3 / 5 {
            return refuse(format!(
                "lease_ttl {} less fence_time {} leaves no room for two lost renewals: \
                 lower fence_time to {} or raise lease_ttl",
                show(ttl),
                show(fence),
                show(ttl * 2 / 5)
            ));
        }
        for (name, value, least, most) in [
            // Six questions of an echo; the longest silence without a fault under full load was 0.27 s.
            ("silent_after", self.silent_after, 600, 60_000),
            // Below three seconds a disk that is merely busy looks like one that is gone.
            ("unresponsive_after", self.unresponsive_after, 3_000, 600_000),
            ("isolation_grace", self.isolation_grace, 0, 600_000),
            ("seal_patience", self.seal_patience, 0, 10_000),
            ("promote_patience", self.promote_patience, 1_000, 600_000),
            ("settle", self.settle, 0, 60_000),
        ] {
            let (low, high) = (Duration::from_millis(least), Duration::from_millis(most));
            if value < low || value > high {
                return refuse(format!(
                    "{name} is {}: use {} to {}",
                    show(value),
                    show(low),
                    show(high)
                ));
            }
        }
        Ok(())
    }

    fn check_postgres(&self) -> Result<(), SpecError> {
        let refuse = |text: String| Err(SpecError(text));
        for (name, value) in &self.postgres.parameters {
            let plain =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.';
            if name.is_empty() || !name.chars().all(plain) {
                return refuse(format!(
                    "postgres.parameters: {name:?} is not the name of a setting (lower case)"
                ));
            }
            if OWNED_SETTINGS.contains(&name.as_str()) {
                return refuse(format!(
                    "postgres.parameters: {name} is pgdeputy's own, take it out"
                ));
            }
            if value.contains(['\n', '\r', '\0']) {
                return refuse(format!(
                    "postgres.parameters: the value of {name} has a line break"
                ));
            }
            if name == "synchronous_commit" && !["on", "remote_apply"].contains(&value.as_str()) {
                return refuse(format!(
                    "postgres.parameters: synchronous_commit = {value} gives up the promise; use on or remote_apply"
                ));
            }
        }
        for line in &self.postgres.pg_hba {
            check_hba(line)?;
        }
        Ok(())
    }
}

fn check_hba(line: &str) -> Result<(), SpecError> {
    let refuse = |text: String| Err(SpecError(format!("postgres.pg_hba: {line:?} {text}")));
    if line.contains(['\n', '\r', '\0']) {
        return refuse("has a line break".into());
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some(kind) = words.first() else { return refuse("is empty".into()) };
    if !["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"].contains(kind) {
        return refuse(format!("begins with {kind:?}, use local, host, hostssl or hostnossl"));
    }
    if words.iter().any(|w| {
        ["trust", "password", "md5", "peer", "ident"].contains(&w.to_lowercase().trim_matches('"'))
    }) {
        return refuse(
            "uses a method that pgdeputy refuses: use scram-sha-256, cert or reject".into(),
        );
    }
    if words.get(1).is_some_and(|w| w.split(',').any(|d| d == "replication")) {
        return refuse("is about replication, whose lines pgdeputy writes itself".into());
    }
    if !words.iter().any(|w| ["scram-sha-256", "cert", "reject"].contains(w)) {
        return refuse("names no method: use scram-sha-256, cert or reject".into());
    }
    Ok(())
}
