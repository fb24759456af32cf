//! The two keys that are held under a lease: the right to run as primary, and the sentinels' leadership.

use serde::{Deserialize, Serialize};

use crate::{Document, Epoch, Incarnation, MemberName};

/// The right to run as primary, stored under `primary` with the keeper's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrimaryKey {
    pub member: MemberName,
    pub epoch: Epoch,
    pub incarnation: Incarnation,
}

/// The leader among the sentinels, stored under `leader` with its lease; `sentinels/<id>` holds the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaderKey {
    pub id: String,
    pub host: String,
    pub listen: Option<String>,
    /// Where candidates ask over UDP whether it is there, `address:port`.
    #[serde(default)]
    pub echo: Option<String>,
    pub pgdeputy_version: String,
}

/// The passwords of the roles that the keepers use, stored under `secrets` unless files give them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    pub superuser: String,
    pub replication: String,
    pub rewind: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(not shown)")
    }
}

impl Document for PrimaryKey {
    const KIND: &'static str = "primary key";
}

impl Document for LeaderKey {
    const KIND: &'static str = "leader key";
}

impl Document for Secrets {
    const KIND: &'static str = "secrets";
}
