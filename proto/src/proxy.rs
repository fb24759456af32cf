//! ProxyReport: what a proxy-config says of itself, stored under `proxies/<id>` with its lease.

use serde::{Deserialize, Serialize};

use crate::{Document, Epoch};

/// One live proxy-config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyReport {
    pub id: String,
    /// The last epoch that its proxy was switched to; zero before the first.
    pub epoch: Epoch,
}

impl Document for ProxyReport {
    const KIND: &'static str = "proxy report";
}
