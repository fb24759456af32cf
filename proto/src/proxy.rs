//! ProxyReport: what a proxy-config says of itself, stored under `proxies/<id>` with its lease.

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
}

/// What becomes of a proxy's clients while the primary is changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clients {
    /// Their sessions end with the old primary.
    #[default]
    Cut,
    /// It can make them wait: a switchover asks it to, and waits for it (`SwitchoverStep::Hold`).
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

    /// Returns whether it holds them for the switchover of `request`.
    pub fn holds_for(&self, request: &RequestId) -> bool {
        self.held.as_ref() == Some(request)
    }
}

impl Document for ProxyReport {
    const KIND: &'static str = "proxy report";
}
