//! ProxyReport: what a proxy-config says of itself, stored under `proxies/<id>` with its lease.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Document, Epoch, RequestId};

/// One live proxy-config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyReport {
    pub id: String,
    /// The last epoch that its proxy was switched to; zero before the first.
    pub epoch: Epoch,
    #[serde(default, skip_serializing_if = "Clients::are_cut")]
    pub clients: Clients,
    /// The switchover whose clients this proxy keeps waiting: none of their transactions runs, none begins. Taken back
    /// as soon as it lets them go, for whatever reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<RequestId>,
    /// The PgBouncers of this proxy that do not do what they are told, and why: their clients are cut while the primary
    /// is changed, whatever becomes of the others'.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refusing: BTreeMap<String, String>,
}

/// What becomes of a proxy's clients while the primary is changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clients {
    /// Their sessions end with the old primary.
    #[default]
    Cut,
    /// It can make those of some of its instances wait: a switchover asks it to, and waits for it
    /// (`SwitchoverStep::Hold`).
    Held,
}

impl Clients {
    fn are_cut(&self) -> bool {
        *self == Self::Cut
    }
}

impl ProxyReport {
    /// Returns whether a switchover waits for this proxy to hold its clients.
    pub fn can_hold(&self) -> bool {
        self.clients == Clients::Held
    }

    /// Returns whose clients a change of primary cuts although they could be held, and why: a sentence for each.
    pub fn cut(&self) -> impl Iterator<Item = String> {
        let id = &self.id;
        self.refusing.iter().map(move |(name, why)| {
            format!("PgBouncer {name} of {id} does not follow, a change of primary cuts its clients: {why}")
        })
    }

    /// Returns whether it holds them for the switchover of `request`.
    pub fn holds_for(&self, request: &RequestId) -> bool {
        self.held.as_ref() == Some(request)
    }
}

impl Document for ProxyReport {
    const KIND: &'static str = "proxy report";
}
