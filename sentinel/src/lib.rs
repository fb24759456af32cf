//! The sentinel: a leader among several turns what keepers report into the next agreed state.
//!
//! The one rule: deciding is a pure function of (spec, state, what was seen, now); only `run`
//! touches the world.

pub mod decide;
mod explain;
pub mod invariant;
#[cfg(feature = "mistakes")]
mod mistakes;
pub mod observe;
pub mod plan;
mod record;
mod run;

pub use run::{run, run_on, write};

use std::collections::BTreeSet;

use proto::ClusterName;
use proto::drill::LiveFault;

/// What one sentinel process is told on its command line.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where etcd is, and as whom it is asked.
    pub etcd: store::EtcdAccess,
    pub clusters: Clusters,
    /// Where `/health` and `/metrics` are served; nowhere by default.
    pub listen: Option<String>,
    /// Tells this sentinel from the others.
    pub id: String,
    pub drills: Drills,
}

/// What a drill may do here.
#[derive(Debug, Clone, Default)]
pub struct Drills {
    /// What this sentinel's operator does not want.
    pub refused: BTreeSet<LiveFault>,
    /// Somebody starts this process again when it has ended: only then a drill may end it.
    pub restarted: bool,
}

/// The clusters that a sentinel cares for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clusters {
    Named(Vec<ClusterName>),
    /// Every cluster that has a spec in this etcd, also those created later.
    All,
}
